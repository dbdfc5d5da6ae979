// Compaction and row moves behind a plain C interface.
//
// Every function exists twice: svit_cuda_* takes device pointers and only enqueues work on `stream`
// (a cudaStream_t); svit_cpu_* takes host pointers, computes the same and ignores `stream`.
//
// All return 0, a cudaError_t, or -1 for arguments that cannot be: a negative size, index_bits
// other than 32 and 64, or a mask of more than 2^31 - 1 elements. Sizes of 0 are fine everywhere.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// compact: where the true elements of a mask [images, tokens] of bytes are, in ascending order.
// With T of them, and K in the fullest image, it writes
//   rows    [T]            index  image * tokens + token of each
//   slots   [images, K]    index  number in `rows` of an image's j-th, -1 in an empty slot
//   places  [T]            index  image * K + j of each
//   lengths [images + 1]   int32  how many are in the images before each, and T at the end
//   counts  [images]       index  how many are in each image
//   total   []             int32  T
//   fullest []             int32  K
// where index is int32_t or int64_t by index_bits. rows, slots and places need room for
// images * tokens elements, for T and K are known only afterwards.
//
// gather: out[i] = x[indices[i]], rows of row_bytes; a row of zeros where the index is outside
// [0, num_rows).
//
// scatter: out = x, then out[rows[i]] = updates[i]; rows are distinct, one outside [0, num_rows) is
// passed over. `out` may be `x`.
#define SVIT_DECLARE(device)                                                                       \
    int svit_##device##_compact(void const* mask, int64_t images, int64_t tokens, int index_bits,  \
                                void* rows, void* slots, void* places, int32_t* lengths,           \
                                void* counts, int32_t* total, int32_t* fullest, void* stream);     \
    int svit_##device##_gather(void const* x, int64_t num_rows, int64_t row_bytes,                 \
                               void const* indices, int64_t num_indices, int index_bits,           \
                               void* out, void* stream);                                           \
    int svit_##device##_scatter(void const* x, int64_t num_rows, int64_t row_bytes,                \
                                void const* rows, void const* updates, int64_t num_updates,        \
                                int index_bits, void* out, void* stream);

SVIT_DECLARE(cuda)
SVIT_DECLARE(cpu)

#undef SVIT_DECLARE

#ifdef __cplusplus
}
#endif
