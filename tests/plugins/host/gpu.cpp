// The kernels on a GPU against the CPU reference, in a CUDA graph, and against a plain copy.
#include "gpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

#include <cuda_runtime_api.h>

namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kGuard = 256;

// Ends the test: nothing after a failed call tells anything.
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t const error = (call);                                                          \
        if (error != cudaSuccess) {                                                                \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error));    \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (false)

// Memory on the GPU between guards, `offset` bytes off its alignment.
class Memory
{
public:
    explicit Memory(size_t bytes, size_t offset = 0) : mBytes(bytes), mOffset(kGuard + offset)
    {
        CUDA(cudaMalloc(&mStart, total()));
        CUDA(cudaMemset(mStart, 0xA5, total()));
    }
    template <typename T>
    explicit Memory(std::vector<T> const& content, size_t offset = 0)
        : Memory(content.size() * sizeof(T), offset)
    {
        CUDA(cudaMemcpy(data(), content.data(), mBytes, cudaMemcpyHostToDevice));
    }
    ~Memory() { cudaFree(mStart); }
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;

    void* data() const { return static_cast<char*>(mStart) + mOffset; }
    int32_t* int32() const { return static_cast<int32_t*>(data()); }

    // All bytes, after a look at the guards; waits for the GPU.
    Bytes read() const
    {
        Bytes all(total());
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaMemcpy(all.data(), mStart, total(), cudaMemcpyDeviceToHost));
        auto const begin = all.begin() + mOffset;
        auto const is_guard = [](uint8_t byte) { return byte == 0xA5; };
        CHECK(std::all_of(all.begin(), begin, is_guard));
        CHECK(std::all_of(begin + mBytes, all.end(), is_guard));
        return {begin, begin + mBytes};
    }

private:
    size_t total() const { return mOffset + mBytes + kGuard; }

    size_t mBytes, mOffset;
    void* mStart = nullptr;
};

// Outputs of compact, in the order of its arguments.
struct Compacted
{
    Compacted(int64_t images, int64_t tokens, int bits)
        : rows(images * tokens * bits / 8), slots(images * tokens * bits / 8),
          places(images * tokens * bits / 8), lengths((images + 1) * 4), counts(images * bits / 8),
          total(4), fullest(4)
    {
    }

    int run(Kernels const& kernels, Memory const& mask, int64_t images, int64_t tokens, int bits,
            cudaStream_t stream = nullptr) const
    {
        return kernels.compact(mask.data(), images, tokens, bits, rows.data(), slots.data(),
                               places.data(), lengths.int32(), counts.data(), total.int32(),
                               fullest.int32(), stream);
    }

    Memory rows, slots, places, lengths, counts, total, fullest;
};

Bytes random_bytes(size_t count, std::mt19937& random)
{
    Bytes bytes(count);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random()); });
    return bytes;
}

Bytes random_mask(int64_t elements, double keep, std::mt19937& random)
{
    std::bernoulli_distribution draw(keep);
    Bytes mask(elements);
    std::generate(mask.begin(), mask.end(), [&] { return static_cast<uint8_t>(draw(random)); });
    return mask;
}

// Distinct row numbers in any order.
std::vector<int64_t> some_rows(int64_t of, int64_t count, std::mt19937& random)
{
    std::vector<int64_t> rows(of);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random);
    rows.resize(count);
    return rows;
}

void check_compact(Kernels const& kernels, int64_t images, int64_t tokens, double keep, int bits,
                   std::mt19937& random)
{
    Bytes const mask = random_mask(images * tokens, keep, random);
    Compacted const found(images, tokens, bits);
    CHECK(found.run(kernels, Memory(mask), images, tokens, bits) == 0);
    // What compact leaves alone, the room behind T and K, stays as Memory has it.
    auto const like = [](Memory const& memory) { return Bytes(memory.read().size(), 0xA5); };
    Bytes rows = like(found.rows), slots = rows, places = rows, counts = like(found.counts);
    std::vector<int32_t> lengths(images + 1), total(1), fullest(1);
    CHECK(svit_cpu_compact(mask.data(), images, tokens, bits, rows.data(), slots.data(),
                           places.data(), lengths.data(), counts.data(), total.data(),
                           fullest.data(), nullptr)
          == 0);
    auto const same = [](Memory const& memory, auto const& wanted) {
        Bytes const bytes = memory.read();
        return std::memcmp(bytes.data(), wanted.data(), bytes.size()) == 0;
    };
    CHECK(same(found.rows, rows));
    CHECK(same(found.slots, slots));
    CHECK(same(found.places, places));
    CHECK(same(found.lengths, lengths));
    CHECK(same(found.counts, counts));
    CHECK(same(found.total, total));
    CHECK(same(found.fullest, fullest));
}

void compact(Kernels const& kernels)
{
    std::mt19937 random(1);
    for (int bits : {32, 64}) {
        for (double keep : {0.0, 0.01, 0.5, 1.0}) {
            for (auto const& [images, tokens] :
                 {std::pair<int64_t, int64_t>{1, 1}, {1, 197}, {3, 31}, {2, 257}, {64, 197},
                  {7, 4097}, {1000, 3}, {9000, 5}}) {
                check_compact(kernels, images, tokens, keep, bits, random);
            }
        }
    }
}

// Calls `check(row_bytes, offset)` for rows and addresses of every alignment.
template <typename Check>
void for_rows(Kernels const& kernels, Check check)
{
    for (int64_t width : {1, 3, 8, 64, 65, 384, 770}) {
        for (size_t offset : {0, 4, 8}) {
            check(width * kernels.element_bytes, offset);
        }
    }
    if (kernels.element_bytes == 2) {
        check(768, 2);
    }
}

void gather(Kernels const& kernels)
{
    std::mt19937 random(2);
    for_rows(kernels, [&](int64_t row_bytes, size_t offset) {
        int64_t const num_rows = 501, count = 300;
        Bytes const x = random_bytes(num_rows * row_bytes, random);
        std::vector<int64_t> indices = some_rows(num_rows, count, random);
        indices[7] = -1;
        indices[8] = num_rows;
        std::vector<int32_t> const narrow(indices.begin(), indices.end());
        Bytes wanted(count * row_bytes);
        CHECK(svit_cpu_gather(x.data(), num_rows, row_bytes, indices.data(), count, 64,
                              wanted.data(), nullptr)
              == 0);
        Memory const input(x, offset), wide_input(indices), narrow_input(narrow);
        for (int bits : {32, 64}) {
            Memory const output(wanted.size(), offset);
            Memory const& numbers = bits == 32 ? narrow_input : wide_input;
            CHECK(kernels.gather(input.data(), num_rows, row_bytes, numbers.data(), count, bits,
                                 output.data(), nullptr)
                  == 0);
            CHECK(output.read() == wanted);
        }
    });
}

void scatter(Kernels const& kernels)
{
    std::mt19937 random(3);
    for_rows(kernels, [&](int64_t row_bytes, size_t offset) {
        for (int64_t count : {0, 300}) {
            int64_t const num_rows = 501;
            Bytes const x = random_bytes(num_rows * row_bytes, random);
            Bytes const updates = random_bytes(count * row_bytes, random);
            std::vector<int64_t> rows = some_rows(num_rows, count, random);
            if (count) {
                rows[7] = -1;
                rows[8] = num_rows;
            }
            Bytes wanted(x.size());
            CHECK(svit_cpu_scatter(x.data(), num_rows, row_bytes, rows.data(), updates.data(),
                                   count, 64, wanted.data(), nullptr)
                  == 0);
            Memory const input(x, offset), numbers(rows), changes(updates, offset);
            Memory const output(wanted.size(), offset);
            CHECK(kernels.scatter(input.data(), num_rows, row_bytes, numbers.data(),
                                  changes.data(), count, 64, output.data(), nullptr)
                  == 0);
            CHECK(output.read() == wanted);
        }
    });
}

// Capture fails on anything but asynchronous work, and a replay must see the mask of its time.
void graph(Kernels const& kernels)
{
    std::mt19937 random(4);
    int64_t const images = 4, tokens = 197, elements = images * tokens, row_bytes = 768;
    Bytes const old_rows = random_bytes(elements * row_bytes, random);
    Bytes const new_rows = random_bytes(elements * row_bytes, random);
    Memory const mask(elements), x(old_rows), y(new_rows);
    Memory const packed(old_rows.size()), output(old_rows.size());
    Compacted const found(images, tokens, 64);
    cudaStream_t stream{};
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(found.run(kernels, mask, images, tokens, 64, stream) == 0);
    CHECK(kernels.gather(y.data(), elements, row_bytes, found.rows.data(), elements, 64,
                         packed.data(), stream)
          == 0);
    CHECK(kernels.scatter(x.data(), elements, row_bytes, found.rows.data(), packed.data(),
                          elements, 64, output.data(), stream)
          == 0);
    cudaGraph_t graph{};
    CUDA(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t executable{};
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 2; ++replay) {
        Bytes const kept = random_mask(elements, 0.3, random);
        CUDA(cudaMemcpy(mask.data(), kept.data(), elements, cudaMemcpyHostToDevice));
        CUDA(cudaMemset(found.rows.data(), 0xFF, elements * 8));  // -1 behind T: passed over
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(executable, stream));
        Bytes wanted = old_rows;
        for (int64_t row = 0; row < elements; ++row) {
            if (kept[row]) {
                std::memcpy(&wanted[row * row_bytes], &new_rows[row * row_bytes], row_bytes);
            }
        }
        CHECK(output.read() == wanted);
    }
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
}

// Microseconds per call, the least of some runs of 20 calls.
template <typename Call>
double microseconds(Call call)
{
    cudaEvent_t start{}, stop{};
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    float least = 1e30f;
    for (int run = 0; run < 6; ++run) {
        CUDA(cudaEventRecord(start, nullptr));
        for (int i = 0; i < 20; ++i) {
            call();
        }
        CUDA(cudaEventRecord(stop, nullptr));
        CUDA(cudaEventSynchronize(stop));
        float milliseconds = 0;
        CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
        least = std::min(least, milliseconds);
    }
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    return least * 1000.0 / 20;
}

// Rows of 384 FP16 values; bytes count as often as they are read or written.
void measure(Kernels const& kernels, int64_t images)
{
    std::mt19937 random(5);
    int64_t const tokens = 197, elements = images * tokens, row_bytes = 768;
    Bytes const mask = random_mask(elements, 0.5, random);
    std::vector<int64_t> kept;
    for (int64_t row = 0; row < elements; ++row) {
        if (mask[row]) {
            kept.push_back(row);
        }
    }
    int64_t const count = static_cast<int64_t>(kept.size());
    Memory const masks(mask), rows(kept), x(elements * row_bytes), all(elements * row_bytes);
    Memory const packed(count * row_bytes), copy(count * row_bytes);
    Compacted const compacted(images, tokens, 64);
    double const copied = microseconds([&] {
        CUDA(cudaMemcpyAsync(copy.data(), packed.data(), count * row_bytes,
                             cudaMemcpyDeviceToDevice, nullptr));
    });
    double const gathered = microseconds([&] {
        CHECK(kernels.gather(x.data(), elements, row_bytes, rows.data(), count, 64, packed.data(),
                             nullptr)
              == 0);
    });
    double const scattered = microseconds([&] {
        CHECK(kernels.scatter(x.data(), elements, row_bytes, rows.data(), packed.data(), count, 64,
                              all.data(), nullptr)
              == 0);
    });
    double const compacting = microseconds(
        [&] { CHECK(compacted.run(kernels, masks, images, tokens, 64) == 0); });
    double const moved = 2.0 * count * row_bytes;
    double const scatter_moved = moved + 2.0 * elements * row_bytes;
    CHECK(copied > 0 && gathered > 0 && scattered > 0 && compacting > 0);
    std::printf("%4d images, %d of %d rows: copy %.1f us (%.0f GB/s), gather %.1f us (%.0f GB/s, "
                "%.0f%% of the copy), scatter %.1f us (%.0f GB/s), compact %.1f us\n",
                static_cast<int>(images), static_cast<int>(count), static_cast<int>(elements),
                copied, moved / copied / 1e3, gathered, moved / gathered / 1e3,
                100 * copied / gathered, scattered, scatter_moved / scattered / 1e3, compacting);
}

void bandwidth(Kernels const& kernels)
{
    for (int64_t images : {1, 8, 64, 2048}) {
        measure(kernels, images);
    }
}

}  // namespace

Tests gpu_tests(std::vector<Kernels> const& all)
{
    auto const each = [all](void (*test)(Kernels const&)) {
        return [all, test] { std::for_each(all.begin(), all.end(), test); };
    };
    return {
        {"gpu_compact", each(compact)},
        {"gpu_gather", each(gather)},
        {"gpu_scatter", each(scatter)},
        {"gpu_graph", each(graph)},
        {"gpu_bandwidth", [all] { bandwidth(all.front()); }},
    };
}
