#include "ptq/module/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace nibble {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct RunHolder : torch::CustomClassHolder {
  explicit RunHolder(TensorsFunction r) : run(std::move(r)) {}
  TensorsFunction run;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  // anchor: a tensor that needs a gradient, so that backward is called at all.
  static tensor_list forward(AutogradContext* ctx, const Tensor& anchor,
                             c10::intrusive_ptr<RunHolder> holder, at::TensorList given) {
    (void)anchor;
    const tensor_list inputs = given.vec();
    tensor_list outputs = holder->run(inputs);
    ctx->save_for_backward(inputs);
    ctx->saved_data["run"] = torch::IValue::make_capsule(std::move(holder));
    return outputs;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list gradients) {
    auto holder =
        c10::static_intrusive_pointer_cast<RunHolder>(ctx->saved_data["run"].toCapsule());
    tensor_list inputs;
    for (const Tensor& input : ctx->get_saved_variables())
      inputs.push_back(input.detach().requires_grad_(input.requires_grad()));
    tensor_list ends, by;
    {
      torch::AutoGradMode on(true);
      const tensor_list outputs = holder->run(inputs);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!outputs[i].requires_grad() || !gradients[i].defined()) continue;
        ends.push_back(outputs[i]);
        by.push_back(gradients[i]);
      }
    }
    if (!ends.empty()) torch::autograd::backward(ends, by);
    tensor_list result = {Tensor(), Tensor()};
    for (const Tensor& input : inputs) result.push_back(input.grad());
    return result;
  }
};

}  // namespace

std::vector<Tensor> recomputed(TensorsFunction run, const std::vector<Tensor>& inputs) {
  if (!torch::GradMode::is_enabled()) return run(inputs);
  const Tensor anchor = at::zeros({1}).requires_grad_();
  return Recompute::apply(anchor, c10::make_intrusive<RunHolder>(std::move(run)),
                          at::TensorList(inputs));
}

}  // namespace nibble
