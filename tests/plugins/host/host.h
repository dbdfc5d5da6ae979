// What drives a plugin library as TensorRT does, without TensorRT: its interfaces are all in its
// headers.
#pragma once

#include "check.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace host {

namespace trt = nvinfer1;
using trt::DataType;

// The library under test, and its creators by name.
struct Library
{
    trt::IPluginCreatorInterface* const* interfaces = nullptr;
    int32_t count = 0;
    std::map<std::string, trt::IPluginCreatorV3One*> creators;
};

extern Library library;

using Plugin = std::unique_ptr<trt::IPluginV3>;

Plugin create(char const* name, std::vector<trt::PluginField> const& fields = {},
              trt::TensorRTPhase phase = trt::TensorRTPhase::kBUILD);
Plugin create_compact(int32_t index_bits, int32_t size_bits = 32);

template <typename Capability>
Capability& capability(Plugin const& plugin, trt::PluginCapabilityType type)
{
    return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

trt::IPluginV3OneCore& core(Plugin const& plugin);
trt::IPluginV3OneBuild& build(Plugin const& plugin);
trt::IPluginV3OneRuntime& runtime(Plugin const& plugin);

trt::Dims dims(std::initializer_list<int64_t> sizes);

struct Tensor
{
    DataType type;
    trt::Dims dims;
    void* data;
};

int enqueue(Plugin const& plugin, std::vector<Tensor> const& inputs,
            std::vector<Tensor> const& outputs, cudaStream_t stream = nullptr);

Tests glue_tests();

}  // namespace host
