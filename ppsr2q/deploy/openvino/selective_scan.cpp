// The selective scan of ops/csrc as an operator of OpenVINO, whose own operators would need a loop over the tokens.
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>
#include <openvino/op/op.hpp>

#include <tbb/parallel_for.h>

#include "scan.h"

namespace {

constexpr int STATES = 8;  // of a channel, in MambaIRv2-light

// Inputs: u, delta (L, D), A (D, 8), B, C (L, 8), D, delta_bias (D,), all float32; output y (L, D).
// Attributes: bits, lower and upper of the quantizer of the states; bits = 0: there is none.
class SelectiveScan : public ov::op::Op {
public:
    OPENVINO_OP("SelectiveScan", "ppsr2q");

    SelectiveScan() = default;
    SelectiveScan(const ov::OutputVector& inputs, std::int64_t bits, float lower, float upper)
        : Op(inputs), bits_(bits), lower_(lower), upper_(upper) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        NODE_VALIDATION_CHECK(this, get_input_size() == 7, "expected 7 inputs");
        for (std::size_t i = 0; i < get_input_size(); i++) {
            NODE_VALIDATION_CHECK(this, get_input_element_type(i) == ov::element::f32, "input ", i,
                                  " is not float32");
        }
        NODE_VALIDATION_CHECK(this, get_input_partial_shape(2).compatible({-1, STATES}), "A must be (D, ",
                              STATES, ")");
        set_output_type(0, ov::element::f32, get_input_partial_shape(0));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<SelectiveScan>(inputs, bits_, lower_, upper_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("bits", bits_);
        visitor.on_attribute("lower", lower_);
        visitor.on_attribute("upper", upper_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape size = inputs[0].get_shape();
        outputs[0].set_shape(size);
        const ppsr2q::ScanShape shape{1, static_cast<std::int64_t>(size[0]), static_cast<int>(size[1])};
        const float bounds[2] = {lower_, upper_};
        const auto data = [&](std::size_t i) { return inputs[i].data<const float>(); };
        const ppsr2q::ScanInputs in{data(0), data(1), data(2), data(3), data(4), data(5), data(6),
                                    ppsr2q::Quantizer(bounds, static_cast<int>(bits_))};
        float* y = outputs[0].data<float>();
        tbb::parallel_for(std::int64_t{0}, std::int64_t{shape.groups()}, [&](std::int64_t task) {
            if (in.quantizer.on) {
                ppsr2q::detail::scan_channels_forward<STATES, true>(shape, in, task, y, nullptr, nullptr);
            } else {
                ppsr2q::detail::scan_channels_forward<STATES, false>(shape, in, task, y, nullptr, nullptr);
            }
        });
        return true;
    }

private:
    std::int64_t bits_ = 0;
    float lower_ = 0;
    float upper_ = 0;
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<SelectiveScan>>(),
     std::make_shared<ov::frontend::onnx::OpExtension<SelectiveScan>>("SelectiveScan", "ppsr2q")}));
