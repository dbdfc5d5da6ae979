// The reference: what kernels.cu must compute, written to be read.
#include "svit_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace svit {
namespace {

bool is_index(int bits)
{
    return bits == 32 || bits == 64;
}

template <typename Index>
void compact(uint8_t const* mask, int64_t images, int64_t tokens, Index* rows, Index* slots,
             Index* places, int32_t* lengths, Index* counts, int32_t* total, int32_t* fullest)
{
    *total = *fullest = lengths[0] = 0;
    for (int64_t image = 0; image < images; ++image) {
        uint8_t const* kept = mask + image * tokens;
        int32_t const count = static_cast<int32_t>(
            std::count_if(kept, kept + tokens, [](uint8_t keep) { return keep != 0; }));
        counts[image] = count;
        lengths[image + 1] = *total += count;
        *fullest = std::max(*fullest, count);
    }
    std::fill(slots, slots + images * *fullest, Index{-1});
    Index packed = 0;
    for (int64_t image = 0; image < images; ++image) {
        int64_t place = image * *fullest;
        for (int64_t row = image * tokens; row < (image + 1) * tokens; ++row) {
            if (mask[row]) {
                rows[packed] = static_cast<Index>(row);
                places[packed] = static_cast<Index>(place);
                slots[place++] = packed++;
            }
        }
    }
}

template <typename Index>
void gather(char const* x, int64_t num_rows, int64_t row_bytes, Index const* indices,
            int64_t num_indices, char* out)
{
    for (int64_t i = 0; i < num_indices; ++i, out += row_bytes) {
        int64_t const row = indices[i];
        if (row >= 0 && row < num_rows) {
            std::memcpy(out, x + row * row_bytes, row_bytes);
        } else {
            std::memset(out, 0, row_bytes);
        }
    }
}

template <typename Index>
void scatter(int64_t num_rows, int64_t row_bytes, Index const* rows, char const* updates,
             int64_t num_updates, char* out)
{
    for (int64_t i = 0; i < num_updates; ++i, updates += row_bytes) {
        int64_t const row = rows[i];
        if (row >= 0 && row < num_rows) {
            std::memcpy(out + row * row_bytes, updates, row_bytes);
        }
    }
}

}  // namespace
}  // namespace svit

int svit_cpu_compact(void const* mask, int64_t images, int64_t tokens, int index_bits, void* rows,
                     void* slots, void* places, int32_t* lengths, void* counts, int32_t* total,
                     int32_t* fullest, void*)
{
    int64_t const limit = std::numeric_limits<int32_t>::max();
    if (!svit::is_index(index_bits) || images < 0 || tokens < 0 || images > limit
        || (images > 0 && tokens > limit / images)) {
        return -1;
    }
    auto const run = [&](auto index) {
        using Index = decltype(index);
        svit::compact(static_cast<uint8_t const*>(mask), images, tokens, static_cast<Index*>(rows),
                      static_cast<Index*>(slots), static_cast<Index*>(places), lengths,
                      static_cast<Index*>(counts), total, fullest);
        return 0;
    };
    return index_bits == 32 ? run(int32_t{}) : run(int64_t{});
}

int svit_cpu_gather(void const* x, int64_t num_rows, int64_t row_bytes, void const* indices,
                    int64_t num_indices, int index_bits, void* out, void*)
{
    if (!svit::is_index(index_bits) || num_rows < 0 || row_bytes < 0 || num_indices < 0) {
        return -1;
    }
    auto const run = [&](auto index) {
        svit::gather(static_cast<char const*>(x), num_rows, row_bytes,
                     static_cast<decltype(index) const*>(indices), num_indices,
                     static_cast<char*>(out));
        return 0;
    };
    return index_bits == 32 ? run(int32_t{}) : run(int64_t{});
}

int svit_cpu_scatter(void const* x, int64_t num_rows, int64_t row_bytes, void const* rows,
                     void const* updates, int64_t num_updates, int index_bits, void* out, void*)
{
    if (!svit::is_index(index_bits) || num_rows < 0 || row_bytes < 0 || num_updates < 0) {
        return -1;
    }
    if (out != x && num_rows > 0) {
        std::memcpy(out, x, num_rows * row_bytes);
    }
    auto const run = [&](auto index) {
        svit::scatter(num_rows, row_bytes, static_cast<decltype(index) const*>(rows),
                      static_cast<char const*>(updates), num_updates, static_cast<char*>(out));
        return 0;
    };
    return index_bits == 32 ? run(int32_t{}) : run(int64_t{});
}
