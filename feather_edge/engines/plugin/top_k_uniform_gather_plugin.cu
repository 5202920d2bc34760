// TopKUniformGather as a TensorRT plugin: IPluginV3, one source from TensorRT 10.3 to 11.
//
// How K is known. The ONNX op has a run-time input num_kept [1] int64, and the shapes of all four
// outputs depend on its value. IPluginV3 has two ways to say so. A size tensor
// (IExprBuilder::declareSizeTensor) is an output that the kernel computes; TensorRT would learn K
// only after the plugin ran, and would allocate for the upper bound. A shape input is a value that
// TensorRT knows on the host before it enqueues anything, which is what num_kept is: the body of
// the ONNX function uses it as TopK's K, which needs it on the host too. So it is a shape input.
// The ONNX parser makes an input a shape input when the node says so by the attribute
// tensorrt_plugin_shape_input_indices = [2]. In getOutputShapes its value is shapeInputs[0]; the
// other methods never see it, and enqueue reads K from the shape of its outputs. Profiles give
// num_kept by value, as they do for the function.
//
// No symbol of libnvinfer is referenced: the library loads beside any of these versions.

#include <cstdint>
#include <cstdio>
#include <new>

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include "kernels.cuh"

namespace feather {
namespace {

using nvinfer1::DataType;

constexpr char kName[] = "TopKUniformGather";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "feather";

// Inputs as the plugin sees them: scores, priority, then the tensors whose rows follow. The
// tensors are counted from the end, so that it does not matter whether num_kept stands before.
constexpr std::int32_t kScores = 0;
constexpr std::int32_t kPriority = 1;
constexpr std::int32_t kNumInputs = 2 + kNumTensors;
constexpr std::int32_t kNumOutputs = 1 + kNumTensors;  // kept, then the tensors

nvinfer1::ILoggerFinder* logger_finder = nullptr;

std::int32_t refuse(char const* message) {
    nvinfer1::ILogger* const logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    } else {  // not every loader of plugins calls setLoggerFinder
        std::fprintf(stderr, "%s\n", message);
    }
    return 1;
}

std::int32_t element_bytes(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return 4;
        case DataType::kHALF:
        case DataType::kBF16: return 2;
        default: return 0;
    }
}

std::int64_t row_bytes(nvinfer1::PluginTensorDesc const& tensor) {
    std::int64_t bytes = element_bytes(tensor.type);
    for (std::int32_t axis = 2; axis < tensor.dims.nbDims; ++axis) bytes *= tensor.dims.d[axis];
    return bytes;
}

class TopKUniformGather final : public nvinfer1::IPluginV3,
                                public nvinfer1::IPluginV3OneCore,
                                public nvinfer1::IPluginV3OneBuild,
                                public nvinfer1::IPluginV3OneRuntime {
public:
    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) TopKUniformGather; }

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override { return kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    // IPluginV3OneBuild
    std::int32_t getNbOutputs() const noexcept override { return kNumOutputs; }

    std::int32_t getOutputDataTypes(DataType* outputs, std::int32_t, DataType const* inputs,
                                    std::int32_t num_inputs) const noexcept override {
        outputs[0] = DataType::kINT64;
        for (int i = 0; i < kNumTensors; ++i) outputs[1 + i] = inputs[num_inputs - kNumTensors + i];
        return 0;
    }

    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t num_inputs,
                                 nvinfer1::DimsExprs const* shape_inputs,
                                 std::int32_t num_shape_inputs, nvinfer1::DimsExprs* outputs,
                                 std::int32_t, nvinfer1::IExprBuilder&) noexcept override {
        if (num_inputs < kNumInputs || num_shape_inputs != 1 || shape_inputs[0].nbDims != 1) {
            return refuse(
                "TopKUniformGather: num_kept must be a shape input of one value; the ONNX node "
                "needs the attribute tensorrt_plugin_shape_input_indices = [2]");
        }
        outputs[0].nbDims = 2;
        for (int i = 0; i < kNumTensors; ++i) {
            outputs[1 + i] = inputs[num_inputs - kNumTensors + i];
        }
        for (int i = 0; i < kNumOutputs; ++i) {
            outputs[i].d[0] = inputs[kScores].d[0];
            outputs[i].d[1] = shape_inputs[0].d[0];
        }
        return 0;
    }

    bool supportsFormatCombination(std::int32_t position,
                                   nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   std::int32_t num_inputs, std::int32_t) noexcept override {
        nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
        if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
        if (position <= kPriority) return tensor.type == DataType::kFLOAT;
        if (position < num_inputs - kNumTensors) return true;  // num_kept, if it is passed at all
        if (position < num_inputs) return element_bytes(tensor.type) != 0;
        if (position == num_inputs) return tensor.type == DataType::kINT64;
        return tensor.type == tensors[position - 1 - kNumTensors].desc.type;
    }

    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const*, std::int32_t,
                                 nvinfer1::DynamicPluginTensorDesc const*,
                                 std::int32_t) noexcept override {
        return 0;
    }

    // IPluginV3OneRuntime
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, std::int32_t num_inputs,
                               nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept override {
        num_inputs_ = num_inputs;  // enqueue is not told
        return inputs[kScores].dims.nbDims == 2 ? 0 : refuse("TopKUniformGather: scores [B, S]");
    }

    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* input_desc,
                         nvinfer1::PluginTensorDesc const* output_desc, void const* const* inputs,
                         void* const* outputs, void*, cudaStream_t stream) noexcept override {
        auto const batch = static_cast<std::int32_t>(input_desc[kScores].dims.d[0]);
        auto const num_rows = static_cast<std::int32_t>(input_desc[kScores].dims.d[1]);
        auto const num_kept = static_cast<std::int32_t>(output_desc[0].dims.d[1]);
        if (batch == 0) return 0;
        if (num_kept < 1 || num_kept > num_rows) {
            return refuse("TopKUniformGather: num_kept must be at least 1 and at most S");
        }
        auto* const kept = static_cast<std::int64_t*>(outputs[0]);
        select_rows<<<batch, kSelectThreads, 0, stream>>>(
            static_cast<float const*>(inputs[kScores]),
            static_cast<float const*>(inputs[kPriority]), kept, num_rows, num_kept);
        RowTensors tensors;
        for (int i = 0; i < kNumTensors; ++i) {
            std::int32_t const input = num_inputs_ - kNumTensors + i;
            tensors.each[i] =
                row_tensor(inputs[input], outputs[1 + i], row_bytes(input_desc[input]));
        }
        dim3 const blocks(num_kept, batch);
        gather_rows<<<blocks, kGatherThreads, 0, stream>>>(kept, tensors, num_rows);
        return cudaPeekAtLastError() == cudaSuccess ? 0 : 1;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return &no_fields_;
    }

private:
    std::int32_t num_inputs_ = kNumInputs;
    nvinfer1::PluginFieldCollection no_fields_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const*,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return new (std::nothrow) TopKUniformGather;
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &no_fields_; }
    char const* getPluginName() const noexcept override { return kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    nvinfer1::PluginFieldCollection no_fields_{};
};

}  // namespace
}  // namespace feather

// What IPluginRegistry::loadLibrary and trtexec --dynamicPlugins look for.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(std::int32_t& num_creators) {
    static feather::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    num_creators = 1;
    return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(
    nvinfer1::ILoggerFinder* finder) {
    feather::logger_finder = finder;
}
