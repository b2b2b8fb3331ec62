#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

constexpr float kMasked = -1e30f;  // as in attention.cpp
// Query rows whose weights and gradients are held at once: whole tiles of every row of
// panel.h, and long enough sums for the products over queries.
constexpr int64_t kRows = 96;
constexpr int64_t kMostTile = 16;  // of panel.h: what a tile reads past the last position

// A sequence's rows of one head.
struct Head {
  const float* data;
  int64_t stride;
  const float* row(int64_t t) const { return data + t * stride; }
};

// One key head of one sequence, and the query heads that read it.
class Task {
 public:
  Task(const AttentionKernel& kernel, const AttentionShape& shape, int64_t length)
      : isa_(*kernel.panel),
        attention_(*kernel.isa),
        shape_(shape),
        length_(length),
        dim_(shape.head_dim),
        width_(2 * isa_.lanes),
        blocks_((length + width_ - 1) / width_),
        padded_dim_((dim_ + width_ - 1) / width_ * width_),
        stride_(blocks_ * width_ + kMostTile) {
    static thread_local Scratch<float> scratch;
    const int64_t turned = blocks_ * dim_ * width_;
    const int64_t sizes[] = {turned,
                             turned,
                             length * padded_dim_,
                             kRows * padded_dim_,
                             kRows * padded_dim_,
                             kRows * stride_,
                             kRows * stride_,
                             kMostTile * std::max({stride_, kRows, dim_}),
                             kMostTile * width_};
    float** const places[] = {&turned_keys_, &turned_values_, &keys_,
                              &queries_,     &pulls_,         &weights_,
                              &gradients_,   &packed_,        &acc_};
    int64_t all = 0;
    for (int64_t size : sizes) all += (size + 15) / 16 * 16;
    float* next = scratch.get(static_cast<size_t>(all));
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *places[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }

  void take_keys(Head k, Head v) {
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t begin = b * width_, count = std::min(width_, length_ - begin);
      turn(k, begin, count, turned_keys_ + b * dim_ * width_);
      turn(v, begin, count, turned_values_ + b * dim_ * width_);
    }
    pad(k, 0, length_, keys_);
  }

  // Adds to dk and dv what one query head gives them.
  void run(Head q, Head dy, MatrixView<float> dq, MatrixView<float> dk,
           MatrixView<float> dv) {
    for (int64_t first = 0; first < length_; first += kRows) {
      const int64_t rows = std::min(kRows, length_ - first);
      const int64_t base = shape_.first_seen(first) / width_ * width_;
      const int64_t limit = shape_.end_seen(first + rows - 1, length_);
      for (int64_t r = 0; r < rows;) {
        const int mr = isa_.next_tile(rows - r);
        const int64_t count = std::min<int64_t>(mr, rows - r);
        weigh(q, dy, first, r, mr, count, base, limit);
        pack_rows(gradients_ + r * stride_, stride_, count, limit - base, mr, packed_);
        for (int64_t d = 0; d < padded_dim_; d += width_) {
          const float* panel = keys_ + base * padded_dim_ + d;
          isa_.product_f32(mr, packed_, panel, panel + isa_.lanes, padded_dim_,
                           limit - base, false, acc_);
          for (int64_t m = 0; m < count; ++m) {
            std::copy_n(acc_ + m * width_, std::min(width_, dim_ - d),
                        dq.row(first + r + m) + d);
          }
        }
        r += mr;
      }
      pad(q, first, rows, queries_);
      pad(dy, first, rows, pulls_);
      add_products(gradients_, queries_, first, rows, base, limit, dk);
      add_products(weights_, pulls_, first, rows, base, limit, dv);
    }
  }

 private:
  // x^T of `count` rows: [dim, width].
  void turn(Head x, int64_t begin, int64_t count, float* panel) const {
    for (int64_t j = 0; j < count; ++j) {
      const float* row = x.row(begin + j);
      for (int64_t d = 0; d < dim_; ++d) panel[d * width_ + j] = row[d];
    }
    for (int64_t d = 0; d < dim_; ++d)
      std::fill(panel + d * width_ + count, panel + (d + 1) * width_, 0.0f);
  }
  void pad(Head x, int64_t begin, int64_t count, float* out) const {
    for (int64_t j = 0; j < count; ++j, out += padded_dim_) {
      std::copy_n(x.row(begin + j), dim_, out);
      std::fill(out + dim_, out + padded_dim_, 0.0f);
    }
  }

  // out[m, j - base] = sum_d x[first + m, d] * panels[d, j], base <= j < end.
  void against(Head x, int64_t first, int mr, int64_t count, const float* panels,
               float factor, int64_t base, int64_t end, float* out) const {
    pack_rows(x.row(first), x.stride, count, dim_, mr, packed_);
    for (int64_t i = 0; i < dim_ * mr; ++i) packed_[i] *= factor;
    for (int64_t b = base / width_; b * width_ < end; ++b) {
      const float* panel = panels + b * dim_ * width_;
      isa_.product_f32(mr, packed_, panel, panel + isa_.lanes, width_, dim_, false, acc_);
      for (int64_t m = 0; m < count; ++m) {
        std::memcpy(out + m * stride_ + b * width_ - base, acc_ + m * width_,
                    static_cast<size_t>(width_) * sizeof(float));
      }
    }
  }

  // Rows [r, r + count) of the weights and of the scores' gradients, 0 where a query does
  // not look.
  void weigh(Head q, Head dy, int64_t first, int64_t r, int mr, int64_t count,
             int64_t base, int64_t limit) const {
    const int64_t t = first + r;
    const int64_t end = shape_.end_seen(t + count - 1, length_);
    float* weights = weights_ + r * stride_;
    float* gradients = gradients_ + r * stride_;
    against(q, t, mr, count, turned_keys_, shape_.scale, base, end, weights);
    against(dy, t, mr, count, turned_values_, 1.0f, base, end, gradients);
    const int64_t whole = (end - base + width_ - 1) / width_ * width_;
    const int64_t room = (limit - base + width_ - 1) / width_ * width_ + kMostTile;
    for (int64_t m = 0; m < count; ++m) {
      float* row = weights + m * stride_;
      float* pull = gradients + m * stride_;
      const int64_t begin = shape_.first_seen(t + m) - base;
      const int64_t n = shape_.end_seen(t + m, length_) - base;
      std::fill(row, row + begin, kMasked);
      std::fill(row + n, row + whole, kMasked);
      float highest;
      const float sum = attention_.softmax(row, n, &highest);
      std::fill(row, row + begin, 0.0f);
      std::fill(row + n, row + room, 0.0f);
      attention_.softmax_backward(row, pull, whole, 1.0f / sum, shape_.scale);
      std::fill(pull + whole, pull + room, 0.0f);
    }
  }

  // to[j] += sum over the rows of x[row, j - base] * right[row], base <= j < limit.
  void add_products(const float* x, const float* right, int64_t first, int64_t rows,
                    int64_t base, int64_t limit, MatrixView<float> to) const {
    for (int64_t j = base; j < limit;) {
      const int mr = isa_.next_tile(limit - j);
      const int64_t count = std::min<int64_t>(mr, limit - j);
      // Queries before the first of these positions do not see them.
      const int64_t from = shape_.causal ? std::max<int64_t>(0, j - first) : 0;
      for (int64_t row = from; row < rows; ++row) {
        std::memcpy(packed_ + (row - from) * mr, x + row * stride_ + j - base,
                    static_cast<size_t>(mr) * sizeof(float));
      }
      for (int64_t d = 0; d < padded_dim_; d += width_) {
        const float* panel = right + from * padded_dim_ + d;
        isa_.product_f32(mr, packed_, panel, panel + isa_.lanes, padded_dim_, rows - from,
                         false, acc_);
        for (int64_t m = 0; m < count; ++m) {
          float* out = to.row(j + m) + d;
          const float* sum = acc_ + m * width_;
          for (int64_t i = 0; i < std::min(width_, dim_ - d); ++i) out[i] += sum[i];
        }
      }
      j += mr;
    }
  }

  const PanelIsa& isa_;
  const AttentionIsa& attention_;
  const AttentionShape& shape_;
  const int64_t length_, dim_, width_, blocks_, padded_dim_, stride_;
  float *turned_keys_, *turned_values_;  // [blocks, dim, width]
  float* keys_;                          // [length, padded_dim]
  float *queries_, *pulls_;              // [kRows, padded_dim]: of q and of dy
  float *weights_, *gradients_;          // [kRows, stride]
  float *packed_, *acc_;
};

}  // namespace

void attention_backward(const AttentionKernel& kernel, const AttentionShape& shape,
                        int64_t sequences, MatrixView<const float> q,
                        MatrixView<const float> k, MatrixView<const float> v,
                        MatrixView<const float> dy, MatrixView<float> dq,
                        MatrixView<float> dk, MatrixView<float> dv) {
  if (kernel.isa == nullptr)
    return attention_backward_reference(shape, sequences, q, k, v, dy, dq, dk, dv);
  const int64_t length = q.rows / std::max<int64_t>(1, sequences);
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  if (length == 0) return;
  parallel_for(sequences * shape.kv_heads, [&](int64_t i) {
    const int64_t first = i / shape.kv_heads * length, kv = i % shape.kv_heads;
    const auto head = [&](const MatrixView<const float>& x, int64_t h) {
      return Head{x.row(first) + h * dim, x.stride};
    };
    const auto out = [&](const MatrixView<float>& x, int64_t h) {
      return MatrixView<float>(x.row(first) + h * dim, length, dim, x.stride);
    };
    Task task(kernel, shape, length);
    task.take_keys(head(k, kv), head(v, kv));
    const MatrixView<float> keys = out(dk, kv), values = out(dv, kv);
    for (int64_t t = 0; t < length; ++t) {
      std::fill_n(keys.row(t), dim, 0.0f);
      std::fill_n(values.row(t), dim, 0.0f);
    }
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
      task.run(head(q, h), head(dy, h), out(dq, h), keys, values);
  });
}

void attention_backward_reference(const AttentionShape& shape, int64_t sequences,
                                  MatrixView<const float> q, MatrixView<const float> k,
                                  MatrixView<const float> v, MatrixView<const float> dy,
                                  MatrixView<float> dq, MatrixView<float> dk,
                                  MatrixView<float> dv) {
  const int64_t length = q.rows / std::max<int64_t>(1, sequences);
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  parallel_for(sequences * shape.kv_heads, [&](int64_t i) {
    const int64_t first = i / shape.kv_heads * length, kv = i % shape.kv_heads * dim;
    const size_t size = static_cast<size_t>(length * dim);
    std::vector<double> keys(size), values(size);
    for (int64_t h = i % shape.kv_heads * group; h < (i % shape.kv_heads + 1) * group;
         ++h) {
      for (int64_t t = 0; t < length; ++t) {
        const float* query = q.row(first + t) + h * dim;
        const float* pull = dy.row(first + t) + h * dim;
        const int64_t begin = shape.first_seen(t), end = shape.end_seen(t, length);
        std::vector<double> a(static_cast<size_t>(end - begin)), g(a.size()),
            queries(static_cast<size_t>(dim));
        for (int64_t j = begin; j < end; ++j) {
          const size_t at = static_cast<size_t>(j - begin);
          for (int64_t d = 0; d < dim; ++d) {
            a[at] += static_cast<double>(query[d]) * k(first + j, kv + d);
            g[at] += static_cast<double>(pull[d]) * v(first + j, kv + d);
          }
          a[at] *= shape.scale;
        }
        const double highest = *std::max_element(a.begin(), a.end());
        double sum = 0, mean = 0;
        for (double& x : a) sum += x = std::exp(x - highest);
        for (size_t j = 0; j < a.size(); ++j) mean += (a[j] /= sum) * g[j];
        for (int64_t j = begin; j < end; ++j) {
          const size_t at = static_cast<size_t>(j - begin);
          const double score = a[at] * (g[at] - mean) * shape.scale;
          for (int64_t d = 0; d < dim; ++d) {
            queries[static_cast<size_t>(d)] += score * k(first + j, kv + d);
            keys[static_cast<size_t>(j * dim + d)] += score * query[d];
            values[static_cast<size_t>(j * dim + d)] += a[at] * pull[d];
          }
        }
        for (int64_t d = 0; d < dim; ++d)
          dq(first + t, h * dim + d) =
              static_cast<float>(queries[static_cast<size_t>(d)]);
      }
    }
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        dk(first + t, kv + d) =
            static_cast<float>(keys[static_cast<size_t>(t * dim + d)]);
        dv(first + t, kv + d) =
            static_cast<float>(values[static_cast<size_t>(t * dim + d)]);
      }
    }
  });
}

}  // namespace nibble
