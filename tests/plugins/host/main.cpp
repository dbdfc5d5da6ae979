// host LIBRARY TEST runs one test, host LIBRARY lists them.
#include "gpu.h"
#include "host.h"

#include <dlfcn.h>

namespace host {

Library library;

Plugin create(char const* name, std::vector<trt::PluginField> const& fields,
              trt::TensorRTPhase phase)
{
    trt::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return Plugin(library.creators.at(name)->createPlugin("layer", &collection, phase));
}

Plugin create_compact(int32_t index_bits, int32_t size_bits)
{
    return create("SvitCompact", {{"index_bits", &index_bits, trt::PluginFieldType::kINT32, 1},
                                  {"size_bits", &size_bits, trt::PluginFieldType::kINT32, 1}});
}

trt::IPluginV3OneCore& core(Plugin const& plugin)
{
    return capability<trt::IPluginV3OneCore>(plugin, trt::PluginCapabilityType::kCORE);
}

trt::IPluginV3OneBuild& build(Plugin const& plugin)
{
    return capability<trt::IPluginV3OneBuild>(plugin, trt::PluginCapabilityType::kBUILD);
}

trt::IPluginV3OneRuntime& runtime(Plugin const& plugin)
{
    return capability<trt::IPluginV3OneRuntime>(plugin, trt::PluginCapabilityType::kRUNTIME);
}

trt::Dims dims(std::initializer_list<int64_t> sizes)
{
    trt::Dims result{};
    for (int64_t size : sizes) {
        result.d[result.nbDims++] = size;
    }
    return result;
}

int enqueue(Plugin const& plugin, std::vector<Tensor> const& inputs,
            std::vector<Tensor> const& outputs, cudaStream_t stream)
{
    std::vector<trt::PluginTensorDesc> descs[2];
    std::vector<void*> data[2];
    for (int side : {0, 1}) {
        for (Tensor const& tensor : side == 0 ? inputs : outputs) {
            trt::PluginTensorDesc desc{};
            desc.dims = tensor.dims;
            desc.type = tensor.type;
            desc.format = trt::TensorFormat::kLINEAR;
            descs[side].push_back(desc);
            data[side].push_back(tensor.data);
        }
    }
    return runtime(plugin).enqueue(descs[0].data(), descs[1].data(), data[0].data(),
                                   data[1].data(), nullptr, stream);
}

bool load(char const* path)
{
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        std::fprintf(stderr, "%s\n", dlerror());
        return false;
    }
    using GetCreators = trt::IPluginCreatorInterface* const* (*)(int32_t&);
    auto const get_creators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    using SetLoggerFinder = void (*)(trt::ILoggerFinder*);
    auto const set_finder = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
    if (!get_creators || !set_finder) {
        std::fprintf(stderr, "%s\n", dlerror());
        return false;
    }
    set_finder(nullptr);
    library.interfaces = get_creators(library.count);
    for (int32_t i = 0; i < library.count; ++i) {
        auto* const creator = static_cast<trt::IPluginCreatorV3One*>(library.interfaces[i]);
        library.creators[creator->getPluginName()] = creator;
    }
    return true;
}

// The plugins' enqueue behind the interface of the kernels, with rows of a type.
Kernels through_enqueue(DataType type)
{
    int64_t const bytes = type == DataType::kFLOAT ? 4 : 2;
    auto const rows = [=](void const* data, int64_t count, int64_t row_bytes) {
        return Tensor{type, dims({count, row_bytes / bytes}), const_cast<void*>(data)};
    };
    auto const index = [](void const* data, trt::Dims dims, int bits) {
        DataType const type = bits == 64 ? DataType::kINT64 : DataType::kINT32;
        return Tensor{type, dims, const_cast<void*>(data)};
    };
    Kernels kernels;
    kernels.element_bytes = bytes;
    kernels.compact = [=](void const* mask, int64_t images, int64_t tokens, int bits, void* rows,
                          void* slots, void* places, int32_t* lengths, void* counts,
                          int32_t* total, int32_t* fullest, void* stream) {
        std::vector<Tensor> outputs;
        for (void* data : {rows, slots, places, static_cast<void*>(lengths), counts,
                           static_cast<void*>(total), static_cast<void*>(fullest)}) {
            outputs.push_back(index(data, {}, bits));  // sizes that enqueue must not rely on
        }
        Tensor const input{DataType::kBOOL, dims({images, tokens}), const_cast<void*>(mask)};
        return enqueue(create_compact(bits), {input}, outputs, static_cast<cudaStream_t>(stream));
    };
    kernels.gather = [=](void const* x, int64_t num_rows, int64_t row_bytes, void const* indices,
                         int64_t count, int bits, void* out, void* stream) {
        return enqueue(create("SvitGather"),
                       {rows(x, num_rows, row_bytes), index(indices, dims({1, count, 1}), bits)},
                       {rows(out, count, row_bytes)}, static_cast<cudaStream_t>(stream));
    };
    kernels.scatter = [=](void const* x, int64_t num_rows, int64_t row_bytes, void const* numbers,
                          void const* updates, int64_t count, int bits, void* out, void* stream) {
        return enqueue(create("SvitScatter"),
                       {rows(x, num_rows, row_bytes), index(numbers, dims({count}), bits),
                        rows(updates, count, row_bytes)},
                       {rows(out, num_rows, row_bytes)}, static_cast<cudaStream_t>(stream));
    };
    return kernels;
}

}  // namespace host

int main(int argc, char** argv)
{
    if (argc < 2 || !host::load(argv[1])) {
        return 2;
    }
    using nvinfer1::DataType;
    Tests tests = host::glue_tests();
    tests.merge(gpu_tests({host::through_enqueue(DataType::kHALF),
                           host::through_enqueue(DataType::kBF16),
                           host::through_enqueue(DataType::kFLOAT)}));
    return run(tests, argc > 2 ? argv[2] : nullptr);
}
