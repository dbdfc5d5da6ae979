// The plugins on a GPU against the CPU reference, in a CUDA graph, and against a plain copy.
#include "host.h"
#include "svit_kernels.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include <cuda_runtime_api.h>

namespace host {
namespace {

constexpr size_t kGuard = 256;

#define CUDA(call) CHECK((call) == cudaSuccess)

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

    // All bytes, after a look at the guards; waits for the GPU.
    std::vector<uint8_t> read() const
    {
        std::vector<uint8_t> all(total());
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

std::vector<uint8_t> random_bytes(size_t count, std::mt19937& random)
{
    std::vector<uint8_t> bytes(count);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random()); });
    return bytes;
}

std::vector<uint8_t> random_mask(int64_t elements, double keep, std::mt19937& random)
{
    std::bernoulli_distribution draw(keep);
    std::vector<uint8_t> mask(elements);
    std::generate(mask.begin(), mask.end(), [&] { return static_cast<uint8_t>(draw(random)); });
    return mask;
}

void check_compact(int64_t images, int64_t tokens, double keep, int32_t bits, std::mt19937& random)
{
    std::vector<uint8_t> const mask = random_mask(images * tokens, keep, random);
    DataType const index = bits == 32 ? DataType::kINT32 : DataType::kINT64;
    size_t const room = images * tokens * bits / 8;
    size_t const sizes[7]
        = {room, room, room, static_cast<size_t>(images + 1) * 4,
           static_cast<size_t>(images) * bits / 8, 4, 4};
    std::vector<std::vector<uint8_t>> wanted;
    std::vector<std::unique_ptr<Memory>> found;
    std::vector<Tensor> outputs;
    for (int i = 0; i < 7; ++i) {
        wanted.emplace_back(sizes[i], uint8_t{0xA5});
        found.push_back(std::make_unique<Memory>(sizes[i]));
        // TensorRT gives upper bounds where a size is not known yet; enqueue must not look.
        outputs.push_back({index, dims({-1}), found.back()->data()});
    }
    auto const int32 = [&](int i) { return reinterpret_cast<int32_t*>(wanted[i].data()); };
    CHECK(svit_cpu_compact(mask.data(), images, tokens, bits, wanted[0].data(), wanted[1].data(),
                           wanted[2].data(), int32(3), wanted[4].data(), int32(5), int32(6),
                           nullptr)
          == 0);
    Memory const input(mask);
    CHECK(enqueue(create_compact(bits), {{DataType::kBOOL, dims({images, tokens}), input.data()}},
                  outputs)
          == 0);
    for (int i = 0; i < 7; ++i) {
        CHECK(found[i]->read() == wanted[i]);  // the unused room behind T and K too
    }
}

void compact()
{
    std::mt19937 random(1);
    for (int32_t bits : {32, 64}) {
        for (double keep : {0.0, 0.01, 0.5, 1.0}) {
            for (auto const& [images, tokens] :
                 {std::pair<int64_t, int64_t>{1, 1}, {1, 197}, {3, 31}, {2, 257}, {64, 197},
                  {7, 4097}, {1000, 3}, {9000, 5}}) {
                check_compact(images, tokens, keep, bits, random);
            }
        }
    }
}

struct Rows
{
    DataType type;
    int64_t width;
    size_t offset;

    int64_t bytes() const { return width * (type == DataType::kFLOAT ? 4 : 2); }
};

std::vector<Rows> all_rows()
{
    std::vector<Rows> rows;
    for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        for (int64_t width : {1, 3, 8, 64, 65, 384, 770}) {
            for (size_t offset : {0, 4, 8}) {
                rows.push_back({type, width, offset});
            }
        }
    }
    rows.push_back({DataType::kHALF, 384, 2});
    return rows;
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

void gather()
{
    std::mt19937 random(2);
    for (Rows const& rows : all_rows()) {
        int64_t const count = 501;
        std::vector<uint8_t> const x = random_bytes(count * rows.bytes(), random);
        std::vector<int64_t> indices = some_rows(count, 300, random);
        indices[7] = -1;
        indices[8] = count;
        std::vector<int32_t> const narrow(indices.begin(), indices.end());
        std::vector<uint8_t> wanted(300 * rows.bytes());
        CHECK(svit_cpu_gather(x.data(), count, rows.bytes(), indices.data(), 300, 64,
                              wanted.data(), nullptr)
              == 0);
        Memory const input(x, rows.offset), wide_input(indices), narrow_input(narrow);
        for (DataType index : {DataType::kINT32, DataType::kINT64}) {
            Memory const output(wanted.size(), rows.offset);
            Memory const& numbers = index == DataType::kINT32 ? narrow_input : wide_input;
            CHECK(enqueue(create("SvitGather"),
                          {{rows.type, dims({count, rows.width}), input.data()},
                           {index, dims({3, 1, 100}), numbers.data()}},
                          {{rows.type, dims({3, 1, 100, rows.width}), output.data()}})
                  == 0);
            CHECK(output.read() == wanted);
        }
    }
}

void scatter()
{
    std::mt19937 random(3);
    for (Rows const& rows : all_rows()) {
        for (int64_t updated : {int64_t{0}, int64_t{300}}) {
            int64_t const count = 501;
            std::vector<uint8_t> const x = random_bytes(count * rows.bytes(), random);
            std::vector<uint8_t> const updates = random_bytes(updated * rows.bytes(), random);
            std::vector<int64_t> indices = some_rows(count, updated, random);
            if (updated) {
                indices[7] = -1;
                indices[8] = count;
            }
            std::vector<uint8_t> wanted(x.size());
            CHECK(svit_cpu_scatter(x.data(), count, rows.bytes(), indices.data(), updates.data(),
                                   updated, 64, wanted.data(), nullptr)
                  == 0);
            Memory const input(x, rows.offset), numbers(indices), changes(updates, rows.offset);
            Memory const output(wanted.size(), rows.offset);
            CHECK(enqueue(create("SvitScatter"),
                          {{rows.type, dims({count, rows.width}), input.data()},
                           {DataType::kINT64, dims({updated}), numbers.data()},
                           {rows.type, dims({updated, rows.width}), changes.data()}},
                          {{rows.type, dims({count, rows.width}), output.data()}})
                  == 0);
            CHECK(output.read() == wanted);
        }
    }
}

// Capture fails on anything but asynchronous work, and a replay must see the mask of its time.
void graph()
{
    std::mt19937 random(4);
    int64_t const images = 4, tokens = 197, width = 384, elements = images * tokens;
    size_t const row_bytes = width * 2, bytes = elements * row_bytes;
    std::vector<uint8_t> const old_rows = random_bytes(bytes, random);
    std::vector<uint8_t> const new_rows = random_bytes(bytes, random);
    Memory const mask(elements), x(old_rows), y(new_rows), packed(bytes), output(bytes);
    Memory const rows(elements * 8), slots(elements * 8), places(elements * 8);
    Memory const lengths((images + 1) * 4), counts(images * 8), total(4), fullest(4);
    DataType const index = DataType::kINT64, half = DataType::kHALF;
    auto const tensor = [&](Memory const& memory) {
        return Tensor{half, dims({elements, width}), memory.data()};
    };
    Tensor const numbers{index, dims({elements}), rows.data()};
    std::vector<Tensor> compacted;
    for (Memory const* memory : {&rows, &slots, &places, &lengths, &counts, &total, &fullest}) {
        compacted.push_back({index, {}, memory->data()});
    }
    cudaStream_t stream{};
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(enqueue(create_compact(64), {{DataType::kBOOL, dims({images, tokens}), mask.data()}},
                  compacted, stream)
          == 0);
    CHECK(enqueue(create("SvitGather"), {tensor(y), numbers}, {tensor(packed)}, stream) == 0);
    CHECK(enqueue(create("SvitScatter"), {tensor(x), numbers, tensor(packed)}, {tensor(output)},
                  stream)
          == 0);
    cudaGraph_t graph{};
    CUDA(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t executable{};
    CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 2; ++replay) {
        std::vector<uint8_t> const content = random_mask(elements, 0.3, random);
        CUDA(cudaMemcpy(mask.data(), content.data(), elements, cudaMemcpyHostToDevice));
        CUDA(cudaMemset(rows.data(), 0xFF, elements * 8));  // -1 behind the T rows: passed over
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(executable, stream));
        std::vector<uint8_t> wanted = old_rows;
        for (int64_t row = 0; row < elements; ++row) {
            if (content[row]) {
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

void measure(int64_t images)
{
    std::mt19937 random(5);
    int64_t const tokens = 197, width = 384, elements = images * tokens;
    std::vector<uint8_t> const mask = random_mask(elements, 0.5, random);
    std::vector<int64_t> kept;
    for (int64_t row = 0; row < elements; ++row) {
        if (mask[row]) {
            kept.push_back(row);
        }
    }
    int64_t const count = static_cast<int64_t>(kept.size());
    size_t const row_bytes = width * 2;
    Memory const mask_memory(mask), rows(kept), x(elements * row_bytes), all(elements * row_bytes);
    Memory const packed(count * row_bytes), copy(count * row_bytes);
    std::vector<std::unique_ptr<Memory>> outputs;
    std::vector<Tensor> compacted;
    for (int i = 0; i < 7; ++i) {
        outputs.push_back(std::make_unique<Memory>((elements + 1) * 8));
        compacted.push_back({DataType::kINT64, {}, outputs.back()->data()});
    }
    DataType const half = DataType::kHALF;
    Tensor const tensor_x{half, dims({elements, width}), x.data()};
    Tensor const tensor_rows{DataType::kINT64, dims({count}), rows.data()};
    Tensor const tensor_packed{half, dims({count, width}), packed.data()};
    Plugin const compact = create_compact(64), gather = create("SvitGather"),
                 scatter = create("SvitScatter");
    double const copied = microseconds([&] {
        CUDA(cudaMemcpyAsync(copy.data(), packed.data(), count * row_bytes,
                             cudaMemcpyDeviceToDevice, nullptr));
    });
    double const gathered = microseconds([&] {
        CHECK(enqueue(gather, {tensor_x, tensor_rows}, {tensor_packed}) == 0);
    });
    double const scattered = microseconds([&] {
        CHECK(enqueue(scatter, {tensor_x, tensor_rows, tensor_packed},
                      {{half, dims({elements, width}), all.data()}})
              == 0);
    });
    double const compacting = microseconds([&] {
        Tensor const input{DataType::kBOOL, dims({images, tokens}), mask_memory.data()};
        CHECK(enqueue(compact, {input}, compacted) == 0);
    });
    double const moved = 2.0 * count * row_bytes;                           // read and written
    double const scatter_moved = moved + 2.0 * elements * row_bytes;
    CHECK(copied > 0 && gathered > 0 && scattered > 0 && compacting > 0);
    std::printf("%5lld images, %lld of %lld rows of %zu bytes: cudaMemcpyAsync %.1f us (%.0f GB/s), "
                "SvitGather %.1f us (%.0f GB/s), SvitScatter %.1f us (%.0f GB/s), "
                "SvitCompact %.1f us\n",
                static_cast<long long>(images), static_cast<long long>(count),
                static_cast<long long>(elements), row_bytes, copied, moved / copied / 1e3,
                gathered, moved / gathered / 1e3, scattered, scatter_moved / scattered / 1e3,
                compacting);
}

void bandwidth()
{
    for (int64_t images : {1, 8, 64, 2048}) {
        measure(images);
    }
}

}  // namespace

Tests gpu_tests()
{
    return {
        {"gpu_compact", compact}, {"gpu_gather", gather},       {"gpu_scatter", scatter},
        {"gpu_graph", graph},     {"gpu_bandwidth", bandwidth},
    };
}

}  // namespace host
