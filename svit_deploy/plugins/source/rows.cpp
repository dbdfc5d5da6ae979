// SvitGather: x [R, C], indices [...] -> [..., C], the rows of x with these numbers.
// SvitScatter: x [R, C], rows [T], updates [T, C] -> [R, C], x with these rows replaced.
#include "plugin.h"
#include "svit_kernels.h"

namespace svit {
namespace {

// Inputs x, row numbers, and whatever else is of the type of x, as is the one output.
template <typename Derived>
class RowPlugin : public Plugin<Derived>
{
public:
    static constexpr int32_t kOutputs = 1;

    static trt::PluginFieldCollection const* fields()
    {
        static trt::PluginFieldCollection const none{};
        return &none;
    }

    static trt::IPluginV3* create(trt::PluginFieldCollection const*)
    {
        return new (std::nothrow) Derived;
    }

    int32_t getOutputDataTypes(trt::DataType* types, int32_t outputs, trt::DataType const* inputs,
                               int32_t nbInputs) const noexcept override
    {
        if (nbInputs != Derived::kInputs || outputs != kOutputs) {
            return -1;
        }
        types[0] = inputs[0];
        return 0;
    }

    bool supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors,
                                   int32_t inputs, int32_t outputs) noexcept override
    {
        trt::PluginTensorDesc const& tensor = tensors[position].desc;
        if (inputs != Derived::kInputs || outputs != kOutputs
            || tensor.format != trt::TensorFormat::kLINEAR) {
            return false;
        }
        switch (position) {
        case 0: return is_real(tensor.type);
        case 1: return is_index(tensor.type);
        default: return tensor.type == tensors[0].desc.type;
        }
    }

protected:
    static int64_t rowBytes(trt::PluginTensorDesc const& x)
    {
        return x.dims.d[1] * (x.type == trt::DataType::kFLOAT ? 4 : 2);
    }

    static int indexBits(trt::PluginTensorDesc const& rows)
    {
        return rows.type == trt::DataType::kINT64 ? 64 : 32;
    }

private:
    static bool is_real(trt::DataType type)
    {
        return type == trt::DataType::kFLOAT || type == trt::DataType::kHALF
               || type == trt::DataType::kBF16;
    }

    static bool is_index(trt::DataType type)
    {
        return type == trt::DataType::kINT32 || type == trt::DataType::kINT64;
    }
};

class Gather final : public RowPlugin<Gather>
{
public:
    static constexpr char const* kName = "SvitGather";
    static constexpr int32_t kInputs = 2;

    int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t nbInputs, trt::DimsExprs const*,
                            int32_t, trt::DimsExprs* outputs, int32_t nbOutputs,
                            trt::IExprBuilder&) noexcept override
    {
        if (nbInputs != kInputs || nbOutputs != kOutputs) {
            return -1;
        }
        trt::DimsExprs const& x = inputs[0];
        trt::DimsExprs const& indices = inputs[1];
        if (x.nbDims != 2 || indices.nbDims < 1 || indices.nbDims >= trt::Dims::MAX_DIMS) {
            return -1;
        }
        outputs[0] = indices;
        outputs[0].d[outputs[0].nbDims++] = x.d[1];
        return 0;
    }

    int32_t enqueue(trt::PluginTensorDesc const* inputDescs, trt::PluginTensorDesc const*,
                    void const* const* inputs, void* const* outputs, void*,
                    cudaStream_t stream) noexcept override
    {
        trt::PluginTensorDesc const& x = inputDescs[0];
        trt::PluginTensorDesc const& indices = inputDescs[1];
        int64_t count = 1;
        for (int32_t i = 0; i < indices.dims.nbDims; ++i) {
            count *= indices.dims.d[i];
        }
        return svit_cuda_gather(inputs[0], x.dims.d[0], rowBytes(x), inputs[1], count,
                                indexBits(indices), outputs[0], stream);
    }
};

class Scatter final : public RowPlugin<Scatter>
{
public:
    static constexpr char const* kName = "SvitScatter";
    static constexpr int32_t kInputs = 3;

    int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t nbInputs, trt::DimsExprs const*,
                            int32_t, trt::DimsExprs* outputs, int32_t nbOutputs,
                            trt::IExprBuilder&) noexcept override
    {
        if (nbInputs != kInputs || nbOutputs != kOutputs || inputs[0].nbDims != 2
            || inputs[1].nbDims != 1 || inputs[2].nbDims != 2) {
            return -1;
        }
        outputs[0] = inputs[0];
        return 0;
    }

    int32_t enqueue(trt::PluginTensorDesc const* inputDescs, trt::PluginTensorDesc const*,
                    void const* const* inputs, void* const* outputs, void*,
                    cudaStream_t stream) noexcept override
    {
        trt::PluginTensorDesc const& x = inputDescs[0];
        trt::PluginTensorDesc const& rows = inputDescs[1];
        trt::Dims const& updates = inputDescs[2].dims;
        if (updates.d[0] != rows.dims.d[0] || updates.d[1] != x.dims.d[1]) {
            return -1;
        }
        return svit_cuda_scatter(inputs[0], x.dims.d[0], rowBytes(x), inputs[1], inputs[2],
                                 rows.dims.d[0], indexBits(rows), outputs[0], stream);
    }
};

}  // namespace

trt::IPluginCreatorInterface* gather_creator()
{
    static Creator<Gather> creator;
    return &creator;
}

trt::IPluginCreatorInterface* scatter_creator()
{
    static Creator<Scatter> creator;
    return &creator;
}

}  // namespace svit
