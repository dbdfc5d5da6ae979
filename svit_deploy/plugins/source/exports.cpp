// The two functions that TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary).
#include "plugin.h"

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& count) noexcept
{
    static nvinfer1::IPluginCreatorInterface* const creators[]
        = {svit::compact_creator(), svit::gather_creator(), svit::scatter_creator()};
    count = sizeof(creators) / sizeof(creators[0]);
    return creators;
}

// Nothing is logged: whatever goes wrong is a return value.
extern "C" __attribute__((visibility("default"))) void
setLoggerFinder(nvinfer1::ILoggerFinder*) noexcept
{
}
