// host LIBRARY TEST runs one test, host LIBRARY lists them.
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

Plugin create_compact(int32_t index_bits)
{
    return create("SvitCompact",
                  {{"index_bits", &index_bits, trt::PluginFieldType::kINT32, 1}});
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

}  // namespace host

int main(int argc, char** argv)
{
    if (argc < 2 || !host::load(argv[1])) {
        return 2;
    }
    host::Tests tests = host::glue_tests();
    tests.merge(host::gpu_tests());
    if (argc < 3) {
        for (auto const& [name, test] : tests) {
            std::printf("%s\n", name.c_str());
        }
        return 0;
    }
    tests.at(argv[2])();
    return host::failures == 0 ? 0 : 1;
}
