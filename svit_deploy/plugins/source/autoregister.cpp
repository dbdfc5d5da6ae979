// For programs that only load a library and expect its plugins to be there: LD_PRELOAD, ONNX
// Runtime, Triton Inference Server. Kept apart from libsvit_trt.so, for loadLibrary fails on
// plugins that are registered already.
#include <NvInferRuntime.h>

#include <algorithm>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept;

namespace {

bool is_registered(nvinfer1::IPluginRegistry& registry,
                   nvinfer1::IPluginCreatorInterface const* creator)
{
    int32_t count = 0;
    auto const* const creators = registry.getAllCreators(&count);
    return std::find(creators, creators + count, creator) != creators + count;
}

__attribute__((constructor)) void register_plugins()
{
    nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
    if (!registry) {
        return;
    }
    int32_t count = 0;
    auto const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
        if (!is_registered(*registry, creators[i])) {
            auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
            registry->registerCreator(*creator, creator->getPluginNamespace());
        }
    }
}

}  // namespace
