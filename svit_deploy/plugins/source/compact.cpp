// SvitCompact: mask [B, S] -> rows [T], slots [B, K], places [T], lengths [B + 1], counts [B],
// total [] = T, fullest [] = K. What they hold: svit_kernels.h.
#include "plugin.h"
#include "svit_kernels.h"

#include <cuda_runtime_api.h>

#include <cstring>

namespace svit {
namespace {

class Compact final : public Plugin<Compact>
{
public:
    static constexpr char const* kName = "SvitCompact";
    static constexpr int32_t kInputs = 1;
    static constexpr int32_t kOutputs = 7;

    static trt::PluginFieldCollection const* fields()
    {
        static trt::PluginField const known[]{
            {"index_bits", nullptr, trt::PluginFieldType::kINT32, 1},
            {"size_bits", nullptr, trt::PluginFieldType::kINT32, 1}};
        static trt::PluginFieldCollection const collection{2, known};
        return &collection;
    }

    static trt::IPluginV3* create(trt::PluginFieldCollection const* fields)
    {
        int32_t indexBits = 64, sizeBits = 32;
        for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
            trt::PluginField const& field = fields->fields[i];
            bool const isIndex = std::strcmp(field.name, "index_bits") == 0;
            if (!isIndex && std::strcmp(field.name, "size_bits") != 0) {
                continue;
            }
            if (field.type != trt::PluginFieldType::kINT32 || field.length != 1 || !field.data) {
                return nullptr;
            }
            int32_t const bits = *static_cast<int32_t const*>(field.data);
            if (bits != 32 && bits != 64) {
                return nullptr;
            }
            (isIndex ? indexBits : sizeBits) = bits;
        }
        return new (std::nothrow) Compact(indexBits, sizeBits);
    }

    Compact(int32_t indexBits, int32_t sizeBits) : mBits(indexBits), mSizeBits(sizeBits)
    {
        pointFields();
    }
    Compact(Compact const& other) : Plugin(other), mBits(other.mBits), mSizeBits(other.mSizeBits)
    {
        pointFields();
    }

    int32_t getOutputDataTypes(trt::DataType* types, int32_t outputs, trt::DataType const*,
                               int32_t inputs) const noexcept override
    {
        if (inputs != kInputs || outputs != kOutputs) {
            return -1;
        }
        for (int32_t i = 0; i < outputs; ++i) {
            types[i] = outputType(i);
        }
        return 0;
    }

    bool supportsFormatCombination(int32_t position, trt::DynamicPluginTensorDesc const* tensors,
                                   int32_t inputs, int32_t outputs) noexcept override
    {
        if (inputs != kInputs || outputs != kOutputs) {
            return false;
        }
        trt::PluginTensorDesc const& tensor = tensors[position].desc;
        bool const fits = position == 0
                              ? tensor.type == trt::DataType::kBOOL
                                    || tensor.type == trt::DataType::kINT8  // bytes, too
                              : tensor.type == outputType(position - kInputs);
        return fits && tensor.format == trt::TensorFormat::kLINEAR;
    }

    int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t nbInputs, trt::DimsExprs const*,
                            int32_t, trt::DimsExprs* outputs, int32_t nbOutputs,
                            trt::IExprBuilder& expressions) noexcept override
    {
        if (nbInputs != kInputs || nbOutputs != kOutputs || inputs[0].nbDims != 2) {
            return -1;
        }
        using Operation = trt::DimensionOperation;
        auto const* images = inputs[0].d[0];
        auto const* tokens = inputs[0].d[1];
        auto const* one = expressions.constant(1);
        auto const* two = expressions.constant(2);
        auto const* elements = expressions.operation(Operation::kPROD, *images, *tokens);
        auto const declare = [&](int32_t output, trt::IDimensionExpr const* most) {
            auto const* usual = expressions.operation(Operation::kCEIL_DIV, *most, *two);
            return expressions.declareSizeTensor(output, *usual, *most);
        };
        auto const* total = declare(kTotal, elements);
        auto const* fullest = declare(kFullest, tokens);
        auto const* lengths = expressions.operation(Operation::kSUM, *images, *one);

        outputs[kRows] = {1, {total}};
        outputs[kSlots] = {2, {images, fullest}};
        outputs[kPlaces] = {1, {total}};
        outputs[kLengths] = {1, {lengths}};
        outputs[kCounts] = {1, {images}};
        outputs[kTotal] = {0, {}};
        outputs[kFullest] = {0, {}};
        return 0;
    }

    int32_t enqueue(trt::PluginTensorDesc const* inputDescs, trt::PluginTensorDesc const*,
                    void const* const* inputs, void* const* outputs, void*,
                    cudaStream_t stream) noexcept override
    {
        trt::Dims const& mask = inputDescs[0].dims;
        // The kernels write 32 bits of a size; the upper ones of a wider number are 0.
        for (int32_t size = kTotal; mSizeBits == 64 && size <= kFullest; ++size) {
            if (cudaError_t const error = cudaMemsetAsync(outputs[size], 0, 8, stream)) {
                return error;
            }
        }
        return svit_cuda_compact(inputs[0], mask.d[0], mask.d[1], mBits, outputs[kRows],
                                 outputs[kSlots], outputs[kPlaces],
                                 static_cast<int32_t*>(outputs[kLengths]), outputs[kCounts],
                                 static_cast<int32_t*>(outputs[kTotal]),
                                 static_cast<int32_t*>(outputs[kFullest]), stream);
    }

private:
    enum Output : int32_t { kRows, kSlots, kPlaces, kLengths, kCounts, kTotal, kFullest };

    // Size tensors are INT32 by the headers of TensorRT 10.3, 10.9 and 11.1 alike, while its own
    // samples moved to INT64 in 10.15: whoever builds may choose.
    trt::DataType outputType(int32_t output) const
    {
        bool const isSize = output == kTotal || output == kFullest;
        int32_t const bits = output == kLengths ? 32 : isSize ? mSizeBits : mBits;
        return bits == 32 ? trt::DataType::kINT32 : trt::DataType::kINT64;
    }

    void pointFields()
    {
        mOwn[0] = {"index_bits", &mBits, trt::PluginFieldType::kINT32, 1};
        mOwn[1] = {"size_bits", &mSizeBits, trt::PluginFieldType::kINT32, 1};
        mFields = {2, mOwn};
    }

    int32_t mBits;
    int32_t mSizeBits;
    trt::PluginField mOwn[2]{};
};

}  // namespace

trt::IPluginCreatorInterface* compact_creator()
{
    static Creator<Compact> creator;
    return &creator;
}

}  // namespace svit
