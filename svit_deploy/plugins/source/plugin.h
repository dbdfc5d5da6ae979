// What the plugins share: one object is plugin, core, build and runtime capability at once.
#pragma once

#include <NvInferRuntime.h>

#include <new>

namespace svit {

namespace trt = nvinfer1;

constexpr char const* kNamespace = "svit";
constexpr char const* kVersion = "1";

trt::IPluginCreatorInterface* compact_creator();
trt::IPluginCreatorInterface* gather_creator();
trt::IPluginCreatorInterface* scatter_creator();

// Derived has kName, kInputs and kOutputs, is copyable, and implements what is left abstract here.
// Nothing in it may throw.
template <typename Derived>
class Plugin : public trt::IPluginV3,
               public trt::IPluginV3OneCore,
               public trt::IPluginV3OneBuild,
               public trt::IPluginV3OneRuntime
{
public:
    trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override
    {
        switch (type) {
        case trt::PluginCapabilityType::kCORE: return static_cast<trt::IPluginV3OneCore*>(this);
        case trt::PluginCapabilityType::kBUILD: return static_cast<trt::IPluginV3OneBuild*>(this);
        case trt::PluginCapabilityType::kRUNTIME:
            return static_cast<trt::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    trt::IPluginV3* clone() noexcept override
    {
        return new (std::nothrow) Derived(static_cast<Derived const&>(*this));
    }

    trt::AsciiChar const* getPluginName() const noexcept override { return Derived::kName; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return Derived::kOutputs; }

    int32_t configurePlugin(trt::DynamicPluginTensorDesc const*, int32_t inputs,
                            trt::DynamicPluginTensorDesc const*, int32_t outputs) noexcept override
    {
        return inputs == Derived::kInputs && outputs == Derived::kOutputs ? 0 : -1;
    }

    int32_t onShapeChange(trt::PluginTensorDesc const*, int32_t, trt::PluginTensorDesc const*,
                          int32_t) noexcept override
    {
        return 0;
    }

    trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override
    {
        return clone();
    }

    trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &mFields; }

protected:
    trt::PluginFieldCollection mFields{};
};

// Derived further has fields(), what its nodes may set, and create(fields), which returns nullptr
// where they are wrong.
template <typename Derived>
class Creator : public trt::IPluginCreatorV3One
{
public:
    trt::IPluginV3* createPlugin(trt::AsciiChar const*, trt::PluginFieldCollection const* fields,
                                 trt::TensorRTPhase) noexcept override
    {
        return Derived::create(fields);
    }

    trt::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return Derived::fields();
    }

    trt::AsciiChar const* getPluginName() const noexcept override { return Derived::kName; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace svit
