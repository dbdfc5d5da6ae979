// The kernels on the GPU. No TensorRT header: whoever has CUDA can compile and test this file.
#include "svit_kernels.h"

#include <algorithm>
#include <limits>

#include <cuda_runtime.h>

// More blocks than run at a time on any GPU; they take turns. Tests set it to a few.
#ifndef SVIT_MAX_BLOCKS
#define SVIT_MAX_BLOCKS 4096
#endif

namespace svit {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = SVIT_MAX_BLOCKS;

struct Scan
{
    int inclusive;  // sum of the values of this thread and those before it
    int total;      // sum over the block
};

// Sums over a block of kThreads; every thread must call it.
__device__ Scan scan(int value)
{
    __shared__ int warp_sums[kWarps];
    int const lane = threadIdx.x % 32;
    int const warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        int const before = __shfl_up_sync(0xffffffff, value, step);
        value += lane >= step ? before : 0;
    }
    if (lane == 31) {
        warp_sums[warp] = value;
    }
    __syncthreads();
    Scan result{value, 0};
    for (int other = 0; other < kWarps; ++other) {
        result.inclusive += other < warp ? warp_sums[other] : 0;
        result.total += warp_sums[other];
    }
    __syncthreads();  // before the next call writes warp_sums
    return result;
}

// One block per image.
template <typename Index>
__global__ void count_kept(uint8_t const* mask, int64_t images, int64_t tokens, Index* counts)
{
    for (int64_t image = blockIdx.x; image < images; image += gridDim.x) {
        int count = 0;
        for (int64_t first = 0; first < tokens; first += kThreads) {
            int64_t const token = first + threadIdx.x;
            count += __syncthreads_count(token < tokens && mask[image * tokens + token]);
        }
        if (threadIdx.x == 0) {
            counts[image] = count;
        }
    }
}

// One block in all.
template <typename Index>
__global__ void sum_lengths(Index const* counts, int64_t images, int32_t* lengths, int32_t* total,
                            int32_t* fullest)
{
    __shared__ int most;
    if (threadIdx.x == 0) {
        most = 0;  // seen by all behind the barriers of the first scan
    }
    int before = 0;
    for (int64_t first = 0; first < images; first += kThreads) {
        int64_t const image = first + threadIdx.x;
        int const count = image < images ? static_cast<int>(counts[image]) : 0;
        Scan const sum = scan(count);
        if (image < images) {
            lengths[image + 1] = before + sum.inclusive;
            atomicMax(&most, count);
        }
        before += sum.total;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        lengths[0] = 0;
        *total = before;
        *fullest = most;
    }
}

// One block per image. All values fit in 32 bits, for there are images * tokens rows at most.
template <typename Index>
__global__ void place_kept(uint8_t const* mask, int64_t images, int64_t tokens,
                           int32_t const* lengths, int32_t const* fullest, Index* rows,
                           Index* slots, Index* places)
{
    int const width = *fullest;
    for (int64_t image = blockIdx.x; image < images; image += gridDim.x) {
        int const start = lengths[image];
        int const count = lengths[image + 1] - start;
        int64_t const first_slot = image * width;
        int before = 0;
        for (int64_t first = 0; first < tokens; first += kThreads) {
            int64_t const token = first + threadIdx.x;
            int64_t const row = image * tokens + token;
            bool const keep = token < tokens && mask[row];
            Scan const rank = scan(keep);
            if (keep) {
                int const slot = before + rank.inclusive - 1;
                rows[start + slot] = static_cast<Index>(row);
                places[start + slot] = static_cast<Index>(first_slot + slot);
                slots[first_slot + slot] = start + slot;
            }
            before += rank.total;
        }
        for (int slot = count + threadIdx.x; slot < width; slot += kThreads) {
            slots[first_slot + slot] = -1;
        }
    }
}

// Threads in x move one row, those in y different rows.
template <typename Vector, typename Index>
__global__ void gather_rows(Vector const* __restrict__ x, int64_t num_rows, int64_t vectors,
                            Index const* __restrict__ indices, int64_t num_indices,
                            Vector* __restrict__ out)
{
    int64_t const step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    for (; i < num_indices; i += step) {
        int64_t const row = indices[i];
        bool const exists = row >= 0 && row < num_rows;
        for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
            out[i * vectors + v] = exists ? x[row * vectors + v] : Vector{};
        }
    }
}

template <typename Vector, typename Index>
__global__ void scatter_rows(Vector const* __restrict__ updates, int64_t num_updates,
                             int64_t vectors, Index const* __restrict__ rows, int64_t num_rows,
                             Vector* __restrict__ out)
{
    int64_t const step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    for (; i < num_updates; i += step) {
        int64_t const row = rows[i];
        if (row >= 0 && row < num_rows) {
            for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
                out[row * vectors + v] = updates[i * vectors + v];
            }
        }
    }
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, void* stream,
           Arguments... arguments)
{
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
    config.blockDim = threads;
    config.stream = static_cast<cudaStream_t>(stream);
    cudaLaunchKernelEx(&config, kernel, arguments...);
    return cudaGetLastError();
}

// The threads of a block that moves rows of so many vectors: as many per row as find work, up to a
// warp, and the rest over further rows.
dim3 row_threads(int64_t vectors)
{
    unsigned lanes = 1;
    while (lanes < 32 && lanes < vectors) {
        lanes *= 2;
    }
    return dim3(lanes, kThreads / lanes);
}

// Calls `run` with a value of the widest type that rows of row_bytes at both addresses can be
// moved in, and one of the type of the indices.
template <typename Run>
int with_types(void const* from, void const* to, int64_t row_bytes, int index_bits, Run run)
{
    auto const with_index = [&](auto vector) {
        return index_bits == 32 ? run(vector, int32_t{}) : run(vector, int64_t{});
    };
    uintptr_t const bits = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)
                           | static_cast<uintptr_t>(row_bytes);
    if (bits % 16 == 0) {
        return with_index(uint4{});
    }
    if (bits % 8 == 0) {
        return with_index(uint2{});
    }
    if (bits % 4 == 0) {
        return with_index(uint32_t{});
    }
    return bits % 2 == 0 ? with_index(uint16_t{}) : with_index(uint8_t{});
}

bool is_index(int bits)
{
    return bits == 32 || bits == 64;
}

template <typename Index>
int compact(uint8_t const* mask, int64_t images, int64_t tokens, Index* rows, Index* slots,
            Index* places, int32_t* lengths, Index* counts, int32_t* total, int32_t* fullest,
            void* stream)
{
    int error = images == 0 ? 0
                            : launch(count_kept<Index>, images, dim3(kThreads), stream, mask,
                                     images, tokens, counts);
    if (error == 0) {
        error = launch(sum_lengths<Index>, 1, dim3(kThreads), stream, counts, images, lengths,
                       total, fullest);
    }
    if (error == 0 && images > 0) {
        error = launch(place_kept<Index>, images, dim3(kThreads), stream, mask, images, tokens,
                       lengths, fullest, rows, slots, places);
    }
    return error;
}

}  // namespace
}  // namespace svit

int svit_cuda_compact(void const* mask, int64_t images, int64_t tokens, int index_bits, void* rows,
                      void* slots, void* places, int32_t* lengths, void* counts, int32_t* total,
                      int32_t* fullest, void* stream)
{
    int64_t const limit = std::numeric_limits<int32_t>::max();
    if (!svit::is_index(index_bits) || images < 0 || tokens < 0 || images > limit
        || (images > 0 && tokens > limit / images)) {
        return -1;
    }
    auto const run = [&](auto index) {
        using Index = decltype(index);
        return svit::compact(static_cast<uint8_t const*>(mask), images, tokens,
                             static_cast<Index*>(rows), static_cast<Index*>(slots),
                             static_cast<Index*>(places), lengths, static_cast<Index*>(counts),
                             total, fullest, stream);
    };
    return index_bits == 32 ? run(int32_t{}) : run(int64_t{});
}

int svit_cuda_gather(void const* x, int64_t num_rows, int64_t row_bytes, void const* indices,
                     int64_t num_indices, int index_bits, void* out, void* stream)
{
    if (!svit::is_index(index_bits) || num_rows < 0 || row_bytes < 0 || num_indices < 0) {
        return -1;
    }
    if (num_indices == 0 || row_bytes == 0) {
        return 0;
    }
    return svit::with_types(x, out, row_bytes, index_bits, [&](auto vector, auto index) {
        using Vector = decltype(vector);
        using Index = decltype(index);
        int64_t const vectors = row_bytes / static_cast<int64_t>(sizeof(Vector));
        dim3 const threads = svit::row_threads(vectors);
        int64_t const blocks = (num_indices + threads.y - 1) / threads.y;
        return svit::launch(svit::gather_rows<Vector, Index>, blocks, threads, stream,
                            static_cast<Vector const*>(x), num_rows, vectors,
                            static_cast<Index const*>(indices), num_indices,
                            static_cast<Vector*>(out));
    });
}

int svit_cuda_scatter(void const* x, int64_t num_rows, int64_t row_bytes, void const* rows,
                      void const* updates, int64_t num_updates, int index_bits, void* out,
                      void* stream)
{
    if (!svit::is_index(index_bits) || num_rows < 0 || row_bytes < 0 || num_updates < 0) {
        return -1;
    }
    if (num_rows == 0 || row_bytes == 0) {
        return 0;
    }
    if (out != x) {
        cudaMemcpyAsync(out, x, num_rows * row_bytes, cudaMemcpyDeviceToDevice,
                        static_cast<cudaStream_t>(stream));
        if (int const error = cudaGetLastError()) {
            return error;
        }
    }
    if (num_updates == 0) {
        return 0;
    }
    return svit::with_types(updates, out, row_bytes, index_bits, [&](auto vector, auto index) {
        using Vector = decltype(vector);
        using Index = decltype(index);
        int64_t const vectors = row_bytes / static_cast<int64_t>(sizeof(Vector));
        dim3 const threads = svit::row_threads(vectors);
        int64_t const blocks = (num_updates + threads.y - 1) / threads.y;
        return svit::launch(svit::scatter_rows<Vector, Index>, blocks, threads, stream,
                            static_cast<Vector const*>(updates), num_updates, vectors,
                            static_cast<Index const*>(rows), num_rows,
                            static_cast<Vector*>(out));
    });
}
