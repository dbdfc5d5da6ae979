// What TensorRT asks a plugin while it builds an engine, and enqueue where there is no GPU.
#include "expressions.h"

#include <algorithm>
#include <cstring>

#include <cuda_runtime_api.h>

namespace host {
namespace {

char const* const kNames[] = {"SvitCompact", "SvitGather", "SvitScatter"};

// Every type that all supported headers have.
DataType const kTypes[]
    = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8,  DataType::kINT32, DataType::kBOOL,
       DataType::kUINT8, DataType::kFP8,  DataType::kBF16,  DataType::kINT64, DataType::kINT4};

void creators()
{
    CHECK(library.count == 3);
    CHECK(library.creators.size() == 3);
    for (int32_t i = 0; i < library.count; ++i) {
        trt::InterfaceInfo const info = library.interfaces[i]->getInterfaceInfo();
        CHECK(std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0);
        CHECK(info.major == 1 && info.minor == 0);
    }
    for (char const* name : kNames) {
        trt::IPluginCreatorV3One* const creator = library.creators.at(name);
        CHECK(std::strcmp(creator->getPluginVersion(), "1") == 0);
        CHECK(std::strcmp(creator->getPluginNamespace(), "svit") == 0);
        CHECK(creator->getFieldNames() != nullptr);
        CHECK(creator->getFieldNames()->nbFields == 2 * (std::strcmp(name, kNames[0]) == 0));
    }
    trt::PluginField const* field = library.creators.at("SvitCompact")->getFieldNames()->fields;
    for (char const* name : {"index_bits", "size_bits"}) {
        CHECK(std::strcmp(field->name, name) == 0);
        CHECK(field++->type == trt::PluginFieldType::kINT32);
    }
}

void fields()
{
    using Type = trt::PluginFieldType;
    int32_t const bits[] = {32, 64, 16};
    float const real = 64;
    CHECK(create_compact(32) && create_compact(64));
    CHECK(create("SvitCompact"));  // 64 by default
    CHECK(create("SvitCompact", {{"other", &bits[2], Type::kINT32, 1}}));
    CHECK(!create_compact(16) && !create_compact(0));
    CHECK(create_compact(64, 64) && create_compact(32, 64) && !create_compact(64, 16));
    CHECK(!create("SvitCompact", {{"index_bits", &real, Type::kFLOAT32, 1}}));
    CHECK(!create("SvitCompact", {{"index_bits", bits, Type::kINT32, 2}}));
    CHECK(!create("SvitCompact", {{"index_bits", nullptr, Type::kINT32, 1}}));
    auto* const creator = library.creators.at("SvitCompact");
    CHECK(Plugin(creator->createPlugin("layer", nullptr, trt::TensorRTPhase::kBUILD)));
    CHECK(create("SvitGather") && create("SvitScatter"));
}

void check_capabilities(Plugin const& plugin, char const* name, int32_t outputs)
{
    CHECK(std::strcmp(plugin->getInterfaceInfo().kind, "PLUGIN") == 0);
    CHECK(std::strcmp(core(plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE") == 0);
    CHECK(std::strcmp(build(plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0);
    CHECK(std::strcmp(runtime(plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME") == 0);
    CHECK(std::strcmp(core(plugin).getPluginName(), name) == 0);
    CHECK(std::strcmp(core(plugin).getPluginVersion(), "1") == 0);
    CHECK(std::strcmp(core(plugin).getPluginNamespace(), "svit") == 0);
    CHECK(build(plugin).getNbOutputs() == outputs);
    CHECK(build(plugin).getWorkspaceSize(nullptr, 0, nullptr, 0) == 0);
    CHECK(runtime(plugin).onShapeChange(nullptr, 0, nullptr, 0) == 0);
}

void capabilities()
{
    for (char const* name : kNames) {
        int32_t const outputs = std::strcmp(name, "SvitCompact") == 0 ? 7 : 1;
        Plugin plugin = create(name);
        check_capabilities(plugin, name, outputs);
        Plugin const clone(plugin->clone());
        Plugin const attached(runtime(plugin).attachToContext(nullptr));
        CHECK(clone && clone != plugin && attached && attached != plugin);
        plugin.reset();
        check_capabilities(clone, name, outputs);
        check_capabilities(attached, name, outputs);
    }
}

std::vector<DataType> output_types(Plugin const& plugin, std::vector<DataType> const& inputs)
{
    std::vector<DataType> types(build(plugin).getNbOutputs());
    int32_t const outputs = static_cast<int32_t>(types.size());
    int32_t const count = static_cast<int32_t>(inputs.size());
    CHECK(build(plugin).getOutputDataTypes(types.data(), outputs, inputs.data(), count) == 0);
    CHECK(build(plugin).getOutputDataTypes(types.data(), outputs, inputs.data(), count + 1) != 0);
    return types;
}

std::vector<DataType> compact_types(DataType index, DataType size = DataType::kINT32)
{
    return {index, index, index, DataType::kINT32, index, size, size};
}

void types()
{
    std::vector<DataType> const mask{DataType::kBOOL};
    CHECK(output_types(create_compact(32), mask) == compact_types(DataType::kINT32));
    CHECK(output_types(create_compact(64), mask) == compact_types(DataType::kINT64));
    CHECK(output_types(create_compact(32, 64), mask)
          == compact_types(DataType::kINT32, DataType::kINT64));
    for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        std::vector<DataType> const same{type};
        CHECK(output_types(create("SvitGather"), {type, DataType::kINT64}) == same);
        CHECK(output_types(create("SvitScatter"), {type, DataType::kINT32, type}) == same);
    }
}

// The types a plugin accepts at a position, where those before it have the types `before`.
std::vector<DataType> accepted(Plugin const& plugin, std::vector<DataType> const& before,
                               int32_t inputs)
{
    std::vector<DataType> found;
    int32_t const outputs = build(plugin).getNbOutputs();
    std::vector<trt::DynamicPluginTensorDesc> tensors(inputs + outputs);
    size_t const position = before.size();
    for (size_t i = 0; i < position; ++i) {
        tensors[i].desc.type = before[i];
        tensors[i].desc.format = trt::TensorFormat::kLINEAR;
    }
    for (DataType type : kTypes) {
        for (int32_t format = 0; format < trt::EnumMax<trt::TensorFormat>(); ++format) {
            tensors[position].desc.type = type;
            tensors[position].desc.format = static_cast<trt::TensorFormat>(format);
            if (!build(plugin).supportsFormatCombination(position, tensors.data(), inputs, outputs)) {
                continue;
            }
            CHECK(tensors[position].desc.format == trt::TensorFormat::kLINEAR);
            found.push_back(type);
        }
    }
    CHECK(!build(plugin).supportsFormatCombination(position, tensors.data(), inputs + 1, outputs));
    return found;
}

void formats()
{
    using Types = std::vector<DataType>;
    for (int32_t bits : {32, 64}) {
        for (int32_t size : {32, 64}) {
            Plugin const compact = create_compact(bits, size);
            CHECK((accepted(compact, {}, 1) == Types{DataType::kINT8, DataType::kBOOL}));
            Types before{DataType::kBOOL};
            for (DataType type : compact_types(bits == 32 ? DataType::kINT32 : DataType::kINT64,
                                               size == 32 ? DataType::kINT32 : DataType::kINT64)) {
                CHECK(accepted(compact, before, 1) == Types{type});
                before.push_back(type);
            }
        }
    }
    Types const reals{DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
    Types const indices{DataType::kINT32, DataType::kINT64};
    Plugin const gather = create("SvitGather");
    Plugin const scatter = create("SvitScatter");
    CHECK(accepted(gather, {}, 2) == reals);
    CHECK(accepted(scatter, {}, 3) == reals);
    for (DataType real : reals) {
        CHECK(accepted(gather, {real}, 2) == indices);
        CHECK(accepted(scatter, {real}, 3) == indices);
        for (DataType index : indices) {
            CHECK(accepted(gather, {real, index}, 2) == Types{real});
            CHECK(accepted(scatter, {real, index}, 3) == Types{real});
            CHECK(accepted(scatter, {real, index, real}, 3) == Types{real});
        }
    }
}

int output_shapes(Plugin const& plugin, std::vector<trt::DimsExprs> const& inputs,
                  std::vector<trt::DimsExprs>& outputs, Expressions& expressions)
{
    outputs.assign(build(plugin).getNbOutputs(), trt::DimsExprs{});
    return build(plugin).getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()),
                                         nullptr, 0, outputs.data(),
                                         static_cast<int32_t>(outputs.size()), expressions);
}

std::vector<int64_t> values(trt::DimsExprs const& shape)
{
    std::vector<int64_t> result;
    for (int32_t i = 0; i < shape.nbDims; ++i) {
        result.push_back(shape.d[i]->getConstantValue());
    }
    return result;
}

void compact_shapes()
{
    using Sizes = std::vector<int64_t>;
    for (auto const& [images, tokens] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {8, 197}}) {
        Expressions expressions;
        std::vector<trt::DimsExprs> outputs;
        Plugin const plugin = create_compact(64);
        CHECK(output_shapes(plugin, {expressions.shape({images, tokens})}, outputs, expressions)
              == 0);
        CHECK(expressions.sizes.size() == 2);
        SizeTensor const total = expressions.sizes.at(5);
        SizeTensor const fullest = expressions.sizes.at(6);
        CHECK(total.upper == images * tokens && total.opt == (images * tokens + 1) / 2);
        CHECK(fullest.upper == tokens && fullest.opt == (tokens + 1) / 2);
        CHECK(outputs[0].nbDims == 1 && outputs[0].d[0] == total.expression);
        CHECK(outputs[1].nbDims == 2 && outputs[1].d[0]->getConstantValue() == images
              && outputs[1].d[1] == fullest.expression);
        CHECK(outputs[2].nbDims == 1 && outputs[2].d[0] == total.expression);
        CHECK((values(outputs[3]) == Sizes{images + 1}));
        CHECK((values(outputs[4]) == Sizes{images}));
        CHECK(outputs[5].nbDims == 0 && outputs[6].nbDims == 0);
    }
    Expressions expressions;
    std::vector<trt::DimsExprs> outputs;
    Plugin const plugin = create_compact(64);
    trt::DimsExprs const mask = expressions.shape({3, 7});
    CHECK(output_shapes(plugin, {expressions.shape({3})}, outputs, expressions) != 0);
    CHECK(output_shapes(plugin, {expressions.shape({3, 7, 1})}, outputs, expressions) != 0);
    CHECK(output_shapes(plugin, {mask, mask}, outputs, expressions) != 0);
}

void row_shapes()
{
    using Sizes = std::vector<int64_t>;
    Expressions expressions;
    std::vector<trt::DimsExprs> outputs;
    trt::DimsExprs const x = expressions.shape({50, 384});
    Plugin const gather = create("SvitGather");
    trt::DimsExprs indices{};
    Sizes wanted;
    for (int32_t rank = 1; rank <= 6; ++rank) {
        indices.d[indices.nbDims++] = expressions.constant(rank + 1);
        wanted.push_back(rank + 1);
        CHECK(output_shapes(gather, {x, indices}, outputs, expressions) == 0);
        Sizes with_width = wanted;
        with_width.push_back(384);
        CHECK(values(outputs[0]) == with_width);
    }
    CHECK(output_shapes(gather, {x, expressions.shape({})}, outputs, expressions) != 0);
    CHECK(output_shapes(gather, {indices, indices}, outputs, expressions) != 0);
    CHECK(output_shapes(gather, {x, expressions.shape({1, 1, 1, 1, 1, 1, 1, 1})}, outputs,
                        expressions)
          != 0);
    CHECK(output_shapes(gather, {x}, outputs, expressions) != 0);

    Plugin const scatter = create("SvitScatter");
    trt::DimsExprs const rows = expressions.shape({9});
    trt::DimsExprs const updates = expressions.shape({9, 384});
    CHECK(output_shapes(scatter, {x, rows, updates}, outputs, expressions) == 0);
    CHECK((values(outputs[0]) == Sizes{50, 384}));
    CHECK(output_shapes(scatter, {x, updates, updates}, outputs, expressions) != 0);
    CHECK(output_shapes(scatter, {x, rows, rows}, outputs, expressions) != 0);
    CHECK(output_shapes(scatter, {rows, rows, updates}, outputs, expressions) != 0);
    CHECK(output_shapes(scatter, {x, rows}, outputs, expressions) != 0);
    CHECK(expressions.sizes.empty());
}

void serialization()
{
    for (int32_t bits : {32, 64}) {
        // A clone of what is gone: the fields must be its own.
        Plugin plugin = create_compact(bits, 96 - bits);
        Plugin const clone(plugin->clone());
        plugin.reset();
        trt::PluginFieldCollection const* const fields = runtime(clone).getFieldsToSerialize();
        CHECK(fields != nullptr && fields->nbFields == 2);
        Plugin const read = create("SvitCompact", {fields->fields, fields->fields + 2},
                                   trt::TensorRTPhase::kRUNTIME);
        CHECK(read != nullptr);
        std::vector<DataType> const types = bits == 32 ? compact_types(DataType::kINT32, DataType::kINT64)
                                       : compact_types(DataType::kINT64);
        CHECK(output_types(read, {DataType::kBOOL}) == types);
    }
    for (char const* name : {"SvitGather", "SvitScatter"}) {
        trt::PluginFieldCollection const* const fields
            = runtime(create(name)).getFieldsToSerialize();
        CHECK(fields != nullptr && fields->nbFields == 0);
        CHECK(create(name, {}, trt::TensorRTPhase::kRUNTIME));
    }
}

void enqueue_of_nothing()
{
    Tensor const x{DataType::kHALF, dims({0, 8}), nullptr};
    Tensor const none{DataType::kINT64, dims({2, 0}), nullptr};
    CHECK(enqueue(create("SvitGather"), {x, none}, {{DataType::kHALF, dims({2, 0, 8}), nullptr}})
          == 0);
    Tensor const rows{DataType::kINT64, dims({0}), nullptr};
    CHECK(enqueue(create("SvitScatter"), {x, rows, x}, {x}) == 0);
}

void enqueue_of_nonsense()
{
    Tensor const x{DataType::kHALF, dims({4, 8}), nullptr};
    Tensor const rows{DataType::kINT32, dims({3}), nullptr};
    Plugin const scatter = create("SvitScatter");
    CHECK(enqueue(scatter, {x, rows, {DataType::kHALF, dims({2, 8}), nullptr}}, {x}) == -1);
    CHECK(enqueue(scatter, {x, rows, {DataType::kHALF, dims({3, 9}), nullptr}}, {x}) == -1);
    Tensor const mask{DataType::kBOOL, dims({int64_t{1} << 20, 1 << 12}), nullptr};
    CHECK(enqueue(create_compact(64), {mask}, std::vector<Tensor>(7, rows)) == -1);
}

// Without a GPU every launch fails, and nothing touches these addresses.
void enqueue_without_gpu()
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
        std::printf("skipped: there is a GPU\n");
        return;
    }
    std::vector<uint64_t> memory(64);
    Tensor const mask{DataType::kBOOL, dims({1, 1}), memory.data()};
    Tensor const x{DataType::kFLOAT, dims({1, 1}), memory.data()};
    Tensor const row{DataType::kINT64, dims({1}), memory.data()};
    CHECK(enqueue(create_compact(64), {mask}, std::vector<Tensor>(7, row)) > 0);
    CHECK(enqueue(create("SvitGather"), {x, row}, {x}) > 0);
    CHECK(enqueue(create("SvitScatter"), {x, row, x}, {{x.type, x.dims, &memory[8]}}) > 0);
    CHECK(enqueue(create("SvitScatter"), {x, row, x}, {x}) > 0);
    CHECK(std::count(memory.begin(), memory.end(), 0u) == 64);
}

}  // namespace

Tests glue_tests()
{
    return {
        {"creators", creators},
        {"fields", fields},
        {"capabilities", capabilities},
        {"types", types},
        {"formats", formats},
        {"compact_shapes", compact_shapes},
        {"row_shapes", row_shapes},
        {"serialization", serialization},
        {"enqueue_of_nothing", enqueue_of_nothing},
        {"enqueue_of_nonsense", enqueue_of_nonsense},
        {"enqueue_without_gpu", enqueue_without_gpu},
    };
}

}  // namespace host
