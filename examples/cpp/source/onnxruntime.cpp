#include <onnxruntime_cxx_api.h>

#include "runtime.h"

namespace svit {
namespace {

ONNXTensorElementDataType element(Type type) {
    switch (type) {
        case Type::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case Type::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case Type::boolean: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    }
    throw std::logic_error("an unknown type");
}

Tensor copy(const std::string& name, const Ort::Value& value) {
    const Ort::TensorTypeAndShapeInfo told = value.GetTensorTypeAndShapeInfo();
    for (const Type type : {Type::float32, Type::int64, Type::boolean}) {
        if (element(type) != told.GetElementType()) continue;
        Tensor tensor(type, told.GetShape());
        std::memcpy(tensor.bytes.data(), value.GetTensorData<std::byte>(), tensor.bytes.size());
        return tensor;
    }
    throw std::runtime_error("output " + name + " has a type that this program does not read");
}

// What it rewrites of int8 it would rewrite of fp8, too, and fail.
Ort::SessionOptions options_for(const Bundle& bundle) {
    Ort::SessionOptions options;
    if (bundle.precision == "fp8") options.AddConfigEntry("session.disable_quant_qdq", "1");
    return options;
}

class OnnxRuntime final : public Runtime {
public:
    explicit OnnxRuntime(const Bundle& bundle)
        : environment_(ORT_LOGGING_LEVEL_WARNING, "svit_run"),
          session_(environment_, (bundle.folder / "model.onnx").c_str(), options_for(bundle)) {
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            inputs_.emplace_back(session_.GetInputNameAllocated(i, allocator_).get());
        }
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
            outputs_.emplace_back(session_.GetOutputNameAllocated(i, allocator_).get());
        }
    }

    Tensors run(const Tensors& given) override {
        const Ort::MemoryInfo memory =
            Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::vector<Ort::Value> values;
        for (const std::string& name : inputs_) {
            const Tensor& tensor = given.at(name);
            // The runtime only reads what it is given.
            values.push_back(Ort::Value::CreateTensor(
                memory, const_cast<std::byte*>(tensor.bytes.data()), tensor.bytes.size(),
                tensor.shape.data(), tensor.shape.size(), element(tensor.type)));
        }
        const std::vector<const char*> from = pointers(inputs_), to = pointers(outputs_);
        const std::vector<Ort::Value> found = session_.Run(
            Ort::RunOptions(), from.data(), values.data(), values.size(), to.data(), to.size());
        Tensors result;
        for (std::size_t i = 0; i < found.size(); ++i)
            result.emplace(outputs_[i], copy(outputs_[i], found[i]));
        return result;
    }

private:
    static std::vector<const char*> pointers(const std::vector<std::string>& names) {
        std::vector<const char*> result;
        for (const std::string& name : names) result.push_back(name.c_str());
        return result;
    }

    Ort::Env environment_;
    Ort::Session session_;
    Ort::AllocatorWithDefaultOptions allocator_;
    std::vector<std::string> inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Runtime> open_onnxruntime(const Bundle& bundle) {
    return std::make_unique<OnnxRuntime>(bundle);
}

}  // namespace svit
