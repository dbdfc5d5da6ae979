#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <iterator>

#include "runtime.h"

namespace svit {
namespace {

namespace trt = nvinfer1;

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

class Log final : public trt::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
    }
};

// Memory on the GPU that grows.
class DeviceMemory {
public:
    DeviceMemory() = default;
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    ~DeviceMemory() { cudaFree(memory_); }

    void* at_least(std::size_t bytes) {
        if (bytes <= size_ && memory_ != nullptr) return memory_;
        cudaFree(memory_);
        memory_ = nullptr;
        size_ = 0;
        const std::size_t wanted = bytes == 0 ? 1 : bytes;
        if (cudaMalloc(&memory_, wanted) != cudaSuccess) return nullptr;
        size_ = wanted;
        return memory_;
    }

    void* get() const { return memory_; }

private:
    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

// Takes an output of whatever size the data make it.
class Output final : public trt::IOutputAllocator {
public:
    void* reallocateOutputAsync(const char*, void*, std::uint64_t size, std::uint64_t,
                                cudaStream_t) noexcept override {
        return memory_.at_least(size);
    }
    void notifyShape(const char*, const trt::Dims& shape) noexcept override { shape_ = shape; }

    const void* memory() const { return memory_.get(); }
    const trt::Dims& shape() const { return shape_; }

private:
    DeviceMemory memory_;
    trt::Dims shape_{};
};

Type type_of(trt::DataType type, const std::string& name) {
    switch (type) {
        case trt::DataType::kFLOAT: return Type::float32;
        case trt::DataType::kINT64: return Type::int64;
        case trt::DataType::kBOOL: return Type::boolean;
        default:
            throw std::runtime_error("output " + name +
                                     " has a type that this program does not read");
    }
}

trt::Dims dims_of(const std::vector<std::int64_t>& shape) {
    trt::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

std::vector<char> read_file(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw std::runtime_error(file.string() + " cannot be read");
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

class TensorRT final : public Runtime {
public:
    TensorRT(const std::filesystem::path& file, const std::filesystem::path& plugins)
        : runtime_(trt::createInferRuntime(log_)) {
        if (!runtime_) throw std::runtime_error("TensorRT does not start");
        if (!plugins.empty() &&
            runtime_->getPluginRegistry().loadLibrary(plugins.c_str()) == nullptr) {
            throw std::runtime_error("the plugins of " + plugins.string() + " cannot be loaded");
        }
        const std::vector<char> content = read_file(file);
        engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
        if (!engine_)
            throw std::runtime_error(file.string() +
                                     " does not run here: build it on this machine");
        context_.reset(engine_->createExecutionContext());
        if (!context_)
            throw std::runtime_error("the engine does not start, perhaps for lack of memory");
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no CUDA stream");
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const std::string name = engine_->getIOTensorName(i);
            const bool is_input =
                engine_->getTensorIOMode(name.c_str()) == trt::TensorIOMode::kINPUT;
            if (is_input) {
                inputs_[name];
            } else if (!context_->setOutputAllocator(name.c_str(), &outputs_[name])) {
                throw std::runtime_error("TensorRT refuses an allocator for " + name);
            }
        }
    }

    ~TensorRT() override {
        cudaStreamSynchronize(stream_);
        cudaStreamDestroy(stream_);
    }

    Tensors run(const Tensors& given) override {
        for (auto& [name, memory] : inputs_) {
            const Tensor& tensor = given.at(name);
            void* place = memory.at_least(tensor.bytes.size());
            if (place == nullptr) throw std::runtime_error("the GPU has no memory for " + name);
            check(cudaMemcpyAsync(place, tensor.bytes.data(), tensor.bytes.size(),
                                  cudaMemcpyHostToDevice, stream_),
                  "to the GPU");
            if (!context_->setInputShape(name.c_str(), dims_of(tensor.shape))) {
                throw std::runtime_error("the engine was built for other shapes of " + name);
            }
            if (!context_->setTensorAddress(name.c_str(), place))
                throw std::runtime_error("TensorRT refuses the memory of " + name);
        }
        if (!context_->enqueueV3(stream_))
            throw std::runtime_error("TensorRT could not run the engine");
        check(cudaStreamSynchronize(stream_), "the engine");
        Tensors result;
        for (const auto& [name, output] : outputs_) {
            const trt::Dims& shape = output.shape();
            Tensor tensor(type_of(engine_->getTensorDataType(name.c_str()), name),
                          {shape.d, shape.d + shape.nbDims});
            check(cudaMemcpyAsync(tensor.bytes.data(), output.memory(), tensor.bytes.size(),
                                  cudaMemcpyDeviceToHost, stream_),
                  "from the GPU");
            check(cudaStreamSynchronize(stream_), "from the GPU");
            result.emplace(name, std::move(tensor));
        }
        return result;
    }

private:
    // Destroyed in the reverse order: what was made of another one first.
    Log log_;
    std::unique_ptr<trt::IRuntime> runtime_;
    std::unique_ptr<trt::ICudaEngine> engine_;
    std::map<std::string, DeviceMemory> inputs_;
    std::map<std::string, Output> outputs_;
    std::unique_ptr<trt::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_ptr<Runtime> open_tensorrt(const Bundle& bundle, const std::filesystem::path& plugins) {
    if (bundle.engine.empty())
        throw std::runtime_error("the bundle has no engine: export it with --target tensorrt");
    if (bundle.task == "detect") {
        throw std::runtime_error("a detector's engine ends before its heads: use ONNX Runtime");
    }
    return std::make_unique<TensorRT>(bundle.folder / bundle.engine, plugins);
}

}  // namespace svit
