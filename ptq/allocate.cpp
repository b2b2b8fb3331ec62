#include "ptq/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

struct Sum {
  double cost = 0, loss = 0;
  size_t before = 0;  // which sum of the layers before
  size_t choice = 0;
};

// Rising cost, falling loss; at most kMostSums.
std::vector<Sum> front(std::vector<Sum> sums, double budget) {
  std::sort(sums.begin(), sums.end(), [](const Sum& a, const Sum& b) {
    if (a.cost != b.cost) return a.cost < b.cost;
    if (a.loss != b.loss) return a.loss < b.loss;
    return a.before != b.before ? a.before < b.before : a.choice < b.choice;
  });
  std::vector<Sum> kept;
  for (const Sum& sum : sums) {
    if (kept.empty() || sum.loss < kept.back().loss) kept.push_back(sum);
  }
  if (kept.size() <= kMostSums) return kept;
  // The last of each slice of cost has its least loss.
  std::vector<Sum> thinned;
  const double width = budget / static_cast<double>(kMostSums);
  for (size_t i = 0; i < kept.size(); ++i) {
    const bool last = i + 1 == kept.size() || std::floor(kept[i].cost / width) !=
                                                  std::floor(kept[i + 1].cost / width);
    if (last) thinned.push_back(kept[i]);
  }
  return thinned;
}

}  // namespace

Result<std::vector<size_t>> allocate(const std::vector<std::vector<LayerChoice>>& layers,
                                     double budget) {
  std::vector<double> cheapest_after(layers.size() + 1, 0);
  for (size_t l = layers.size(); l-- > 0;) {
    double cheapest = std::numeric_limits<double>::infinity();
    for (const LayerChoice& choice : layers[l])
      cheapest = std::min(cheapest, choice.cost);
    cheapest_after[l] = cheapest_after[l + 1] + cheapest;
  }
  // Sums of the same numbers in another order differ by roundings.
  const double limit = budget * (1 + 1e-12);
  if (!(cheapest_after[0] <= limit)) {
    return error(StatusCode::failed_precondition,
                 "[allocate] budget: the cheapest choices take ", cheapest_after[0],
                 "; found a budget of ", budget, "; raise it or give cheaper choices");
  }
  std::vector<std::vector<Sum>> fronts = {{Sum{}}};
  for (size_t l = 0; l < layers.size(); ++l) {
    std::vector<Sum> sums;
    const std::vector<Sum>& before = fronts.back();
    for (size_t i = 0; i < before.size(); ++i) {
      for (size_t c = 0; c < layers[l].size(); ++c) {
        const double cost = before[i].cost + layers[l][c].cost;
        if (cost + cheapest_after[l + 1] > limit) continue;
        sums.push_back({cost, before[i].loss + layers[l][c].loss, i, c});
      }
    }
    fronts.push_back(front(std::move(sums), budget));
  }
  std::vector<size_t> chosen(layers.size());
  size_t at = fronts.back().size() - 1;  // the dearest has the least loss
  for (size_t l = layers.size(); l-- > 0;) {
    const Sum& sum = fronts[l + 1][at];
    chosen[l] = sum.choice;
    at = sum.before;
  }
  return chosen;
}

}  // namespace nibble
