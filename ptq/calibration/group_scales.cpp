#include "ptq/calibration/group_scales.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/base/cancel.h"
#include "ptq/calibration/sharded_hessian.h"
#include "ptq/calibration/sharded_streams.h"
#include "ptq/error.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// The node before which every sample has the value: its first reader.
size_t first_reader(const Program& program, const std::string& value) {
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    for (const std::string& input : program.nodes[i].inputs) {
      if (input == value) return i;
    }
  }
  return program.nodes.size();
}

// What one shard's samples say of a value.
struct ShardSums {
  int64_t tokens = 0;
  at::Tensor mean, most;  // f64 [columns]: the sum of |x| as yet, and max |x|
  std::vector<at::Tensor> kept;
  int64_t kept_rows = 0;
};

class Finder {
 public:
  Finder(const Transform& transform, const ScaleProblem& problem)
      : transform_(transform),
        problem_(problem),
        program_(problem.model.program),
        ranks_(Ranks::instance()),
        before_(problem.weights),
        streams_(problem.model, problem.plan, problem.data, problem.options.spill,
                 problem.options.device) {
    const int64_t tokens =
        problem.plan.calibration_sequences * problem.plan.calibration_length;
    step_ = std::max<int64_t>(1, tokens / GroupInputs::kKeptRows);
    streams_.add([this](const std::string& name) { return before_.value(name); },
                 [this](const std::string& name, const at::Tensor& ids) {
                   return before_.rows(name, ids);
                 });
  }

  void run() {
    const std::vector<ScaleGroup> groups = value_or_throw(groups_to_scale(
        transform_.name, problem_.plan, program_, problem_.model.tensors));
    const StreamOptions& options = problem_.options;
    BlockDone done{.step = transform_.name,
                   .blocks = program_.block_count(),
                   .total = static_cast<int64_t>(groups.size())};
    for (size_t i = 0; i < groups.size(); ++i) {
      const ScaleGroup& group = groups[i];
      const bool searched =
          take(group, known_everywhere(problem_.found, transform_.name, group.value));
      ++done.done;
      done.layers += searched;
      if (options.progress)
        options.progress(transform_.name, group.value, done.done, done.total);
      done.block = block_of(group);
      if (i + 1 < groups.size() && block_of(groups[i + 1]) == done.block) continue;
      problem_.found.end_block();
      if (options.block_done && done.layers > 0) options.block_done(done);
      done.layers = 0;
    }
  }

 private:
  int block_of(const ScaleGroup& group) const {
    return program_.nodes[first_reader(program_, group.value)].block;
  }

  // True where it had to be searched.
  bool take(const ScaleGroup& group, std::optional<GroupScale> found) {
    const bool searched = !found.has_value();
    if (searched) {
      found = search(group);
      problem_.found.put(transform_.name, group.value, *found);
    }
    problem_.weights.scale({.makers = group.makers,
                            .readers = group.readers,
                            .channel_of_column = group.channel_of_column,
                            .scale = std::move(found->scale)});
    for (const auto& [tensor, note] : found->notes) {
      std::string& text = problem_.notes[tensor];
      text += cat(text.empty() ? "" : "; ", note);
    }
    return searched;
  }

  GroupInputs observe(const ScaleGroup& group) {
    const auto columns = static_cast<int64_t>(group.channel_of_column.size());
    std::optional<ShardedHessian> products;
    if (transform_.uses_hessian) products.emplace(ranks_, columns, streams_.device());
    std::vector<ShardSums> sums(kShards);
    for (ShardSums& sum : sums) {
      sum.mean = at::zeros({columns}, at::kDouble);
      sum.most = at::zeros({columns}, at::kDouble);
    }
    streams_.advance(
        first_reader(program_, group.value),
        [&](const ShardedStreams::Shard& shard, int64_t first, int64_t last) {
          const at::Tensor rows = streams_.gather(0, group.value, first, last);
          if (products) products->shard().accumulate(rows);
          take_in(rows.cpu(), sums[static_cast<size_t>(shard.index)]);
        },
        [&](const ShardedStreams::Shard&) {
          if (products) products->end_shard();
        });
    GroupInputs inputs{.group = group, .hessian = {}, .mean = {}, .most = {}, .rows = {}};
    combine(sums, inputs);
    check_finite(inputs);
    if (products) inputs.hessian = mean_product(products->finish());
    return inputs;
  }

  // rows become their magnitudes.
  void take_in(at::Tensor rows, ShardSums& sum) const {
    const int64_t room = GroupInputs::kKeptRows / kShards - sum.kept_rows;
    const int64_t begin = (step_ - sum.tokens % step_) % step_;
    if (begin < rows.size(0) && room > 0) {
      at::Tensor kept = rows.slice(0, begin, rows.size(0), step_);
      kept = kept.narrow(0, 0, std::min(room, kept.size(0))).clone();
      sum.kept_rows += kept.size(0);
      sum.kept.push_back(std::move(kept));
    }
    sum.tokens += rows.size(0);
    rows.abs_();
    sum.mean += rows.sum(0, false, at::kDouble);
    sum.most = at::maximum(sum.most, rows.amax(0).to(at::kDouble));
  }

  // The shards' sums in their order, on every rank.
  void combine(std::vector<ShardSums>& sums, GroupInputs& inputs) const {
    const int64_t columns = sums[0].mean.size(0);
    std::vector<int64_t> counts;
    for (const ShardSums& sum : sums) {
      counts.push_back(sum.tokens);
      counts.push_back(sum.kept_rows);
    }
    counts = ranks_.sum(std::move(counts));
    int64_t tokens = 0;
    std::vector<at::Tensor> rows;
    inputs.mean = at::zeros({columns}, at::kDouble);
    inputs.most = at::zeros({columns}, at::kDouble);
    for (int shard = 0; shard < kShards; ++shard) {
      ShardSums& sum = sums[static_cast<size_t>(shard)];
      const int owner = ranks_.owner(shard);
      tokens += counts[static_cast<size_t>(2 * shard)];
      at::Tensor kept =
          owner == ranks_.rank() && !sum.kept.empty()
              ? at::cat(sum.kept)
              : at::empty({counts[static_cast<size_t>(2 * shard + 1)], columns});
      for (at::Tensor* part : {&sum.mean, &sum.most, &kept})
        ranks_.broadcast(*part, owner);
      inputs.mean += sum.mean;
      inputs.most = at::maximum(inputs.most, sum.most);
      rows.push_back(std::move(kept));
    }
    inputs.mean /= static_cast<double>(std::max<int64_t>(tokens, 1));
    inputs.rows = at::cat(rows);
  }

  void check_finite(const GroupInputs& inputs) const {
    if (at::isfinite(inputs.mean).all().item<bool>()) return;
    throw Error(error(StatusCode::out_of_range, "[", transform_.name, "] ",
                      inputs.group.readers[0],
                      ": its inputs must be finite on the calibration data; found NaN or "
                      "infinity, which a layer before it makes; check the weights, or "
                      "calibrate on other data"));
  }

  static at::Tensor mean_product(const Hessian& sum) {
    constexpr int64_t kPanel = 512;
    const at::Tensor whole = sum.matrix();
    const int64_t n = whole.size(0);
    const auto tokens = static_cast<double>(std::max<int64_t>(sum.tokens(), 1));
    at::Tensor mean = at::empty({n, n}, at::kFloat);
    for (int64_t first = 0; first < n; first += kPanel) {
      const int64_t count = std::min(kPanel, n - first);
      mean.narrow(0, first, count).copy_(whole.narrow(0, first, count) / tokens);
    }
    return mean;
  }

  GroupScale search(const ScaleGroup& group) {
    const GroupInputs inputs = observe(group);
    const GroupSearch search = transform_.search(problem_.plan, before_, inputs);
    const auto count = static_cast<int64_t>(search.candidates.size());
    const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(group.channel_of_column));
    at::Tensor errors = at::zeros({count}, at::kDouble);
    double* error = errors.mutable_data_ptr<double>();
    const int64_t ranks = ranks_.count(), rank = ranks_.rank();
    for (size_t reader = 0; reader < search.readers; ++reader) {
      throw_if_error(check_cancelled(transform_.name));
      search.open(reader);
      in_parallel((count - rank + ranks - 1) / ranks, [&](int64_t i) {
        const auto at = static_cast<size_t>(rank + i * ranks);
        error[at] += search.error(
            search.candidates[at].scale.index_select(0, index).to(at::kFloat));
      });
    }
    for (int from = 0; from < ranks_.count(); ++from) {
      at::Tensor theirs = errors.clone();
      ranks_.broadcast(theirs, from);
      for (int64_t i = from; i < count; i += ranks)
        error[i] = theirs.const_data_ptr<double>()[i];
    }
    size_t best = search.takes_last ? search.candidates.size() - 1 : 0;
    for (int64_t i = 0; !search.takes_last && i < count; ++i) {
      if (error[i] < error[best]) best = static_cast<size_t>(i);
    }
    at::Tensor scale = search.candidates[best].scale.contiguous();
    ranks_.broadcast(scale, 0);  // makes of CPU may differ in the last bit of a power
    const double* values = scale.const_data_ptr<double>();
    GroupScale found{{values, values + scale.numel()}, {}};
    if (best == 0) return found;
    const std::string note =
        cat(transform_.name, ": ", search.candidates[best].what, ", ", search.measured,
            " ", error[best] / error[0], " of unscaled");
    for (const std::string& name : group.readers) found.notes[name] = note;
    for (const std::string& name : group.makers)
      found.notes[name] =
          cat(transform_.name, ": divided by the factors of ", group.readers[0]);
    return found;
  }

  const Transform& transform_;
  const ScaleProblem& problem_;
  const Program& program_;
  Ranks& ranks_;
  const ModelWeights before_;  // without this transform's factors: what the samples see
  ShardedStreams streams_;
  int64_t step_ = 1;
};

}  // namespace

void scale_groups(const Transform& transform, const ScaleProblem& problem) {
  const OneThread one_thread;
  Finder(transform, problem).run();
}

}  // namespace nibble
