#include "ptq/module/mixture.h"

#include <ATen/ATen.h>

namespace nibble {

Routing route(const Node& moe, const at::Tensor& router_logits) {
  const at::Tensor logits = router_logits.reshape({-1, router_logits.size(-1)});
  const int64_t top_k = moe.integer("experts_per_token", 1);
  // Stable, so that equal logits keep the order of their experts.
  const at::Tensor order =
      std::get<1>(at::sort(logits.detach(), /*stable=*/true, /*dim=*/-1,
                           /*descending=*/true));
  Routing routing;
  routing.chosen = order.narrow(1, 0, top_k).contiguous();
  routing.weights = at::softmax(logits, -1).gather(1, routing.chosen);
  if (moe.integer("normalize", 0) != 0) {
    routing.weights = routing.weights / routing.weights.sum(-1, /*keepdim=*/true);
  }
  return routing;
}

ExpertTokens tokens_of(const at::Tensor& chosen, int64_t expert) {
  const at::Tensor where = chosen.eq(expert).nonzero();  // row-major: tokens rise
  return {where.select(1, 0).contiguous(), where.select(1, 1).contiguous()};
}

}  // namespace nibble
