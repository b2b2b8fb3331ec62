#include <algorithm>

#include "kernels/ops/attention/attention.h"
#include "op_test.h"

namespace nibble {
namespace {

struct Operands {
  AttentionShape shape;
  Spaced q, k, v;
  Operands(int64_t tokens, int64_t before, AttentionShape shape_, uint64_t seed)
      : shape(shape_),
        q(random_floats(tokens * shape.heads * shape.head_dim, seed), tokens,
          shape.heads * shape.head_dim),
        k(random_floats((before + tokens) * shape.kv_heads * shape.head_dim, seed + 1),
          before + tokens, shape.kv_heads * shape.head_dim, 7),
        v(random_floats((before + tokens) * shape.kv_heads * shape.head_dim, seed + 2),
          before + tokens, shape.kv_heads * shape.head_dim, 11) {}
};

// The bound of attention.h for every output.
double bound(const Operands& o, int64_t t, int64_t h, int64_t d) {
  const int64_t dim = o.shape.head_dim;
  const int64_t kv = h / (o.shape.heads / o.shape.kv_heads) * dim;
  const int64_t seen = o.k.rows - o.q.rows + t + 1;  // more than with a window
  double largest = 1, value = 0;
  for (int64_t j = 0; j < seen; ++j) {
    double a = 0;
    for (int64_t i = 0; i < dim; ++i) {
      a += std::fabs(static_cast<double>(o.q.view()(t, h * dim + i)) *
                     o.k.view()(j, kv + i));
    }
    largest = std::max(largest, a * o.shape.scale);
    value = std::max(value, std::fabs(static_cast<double>(o.v.view()(j, kv + d))));
  }
  return (8 * static_cast<double>(dim + 8) * largest +
          2 * static_cast<double>(seen + 8)) *
         0x1p-24 * value;
}

class AttentionRow : public OpTest, public ::testing::WithParamInterface<size_t> {
 protected:
  const AttentionKernel& kernel() const { return attention_kernels()[GetParam()]; }
  void SetUp() override {
    if (!this_cpu_has(kernel().flags))
      GTEST_SKIP() << "this CPU lacks what the row needs";
  }
};

TEST_P(AttentionRow, GivesWhatTheDefinitionGives) {
  struct Heads {
    int64_t heads, kv_heads, head_dim;
  };
  for (const Heads& heads : {Heads{8, 4, 8}, Heads{4, 4, 32}, Heads{6, 2, 64},
                             Heads{3, 1, 80}, Heads{2, 2, 20}}) {
    const AttentionShape shape{heads.heads, heads.kv_heads, heads.head_dim,
                               1.0f / std::sqrt(static_cast<float>(heads.head_dim))};
    for (int64_t before : {0, 1, 15, 100}) {
      for (int64_t tokens = 1; tokens <= 40; tokens += tokens < 17 ? 1 : 23) {
        SCOPED_TRACE(cat(heads.heads, " heads, ", heads.kv_heads, " of keys, dim ",
                         heads.head_dim, ", ", before, " + ", tokens, " tokens"));
        const Operands o(tokens, before, shape, static_cast<uint64_t>(tokens));
        Spaced y(tokens, o.q.cols), expected(tokens, o.q.cols);
        attention(kernel(), shape, o.q.view(), o.k.view(), o.v.view(), y.view());
        attention_reference(shape, o.q.view(), o.k.view(), o.v.view(), expected.view());
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < o.q.cols; ++c) {
            const double error = std::fabs(y.view()(t, c) - expected.view()(t, c));
            // Far inside the bound most of the time: compute it only where it may matter.
            if (error <= 0x1p-24) continue;
            ASSERT_LE(error, bound(o, t, c / shape.head_dim, c % shape.head_dim))
                << "token " << t << ", column " << c << ": " << y.view()(t, c)
                << " where " << expected.view()(t, c) << " was expected";
          }
        }
        ASSERT_TRUE(y.gaps_untouched());
      }
    }
  }
}

// What every window hides is huge: whoever counts it in shows it.
TEST_P(AttentionRow, AWindowHidesWhatLiesBefore) {
  AttentionShape shape{4, 2, 20, 0.2f};
  for (int64_t window : {1, 2, 5, 16, 31, 64, 1000}) {
    for (int64_t before : {0, 3, 40, 100}) {
      for (int64_t tokens : {1, 3, 4, 9, 40}) {
        SCOPED_TRACE(cat("window ", window, ", ", before, " + ", tokens, " tokens"));
        shape.window = window;
        Operands o(tokens, before, shape, static_cast<uint64_t>(window + tokens));
        // Token by token over a copy of the last `window` rows, without a window.
        std::vector<float> expected;
        AttentionShape plain = shape;
        plain.window = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t begin = std::max<int64_t>(0, before + t + 1 - window);
          const auto rows = [&](const Spaced& x) {
            return MatrixView<const float>(x.view().row(begin), before + t + 1 - begin,
                                           x.cols, x.stride);
          };
          std::vector<float> y(static_cast<size_t>(o.q.cols));
          attention_reference(
              plain, MatrixView<const float>(o.q.view().row(t), 1, o.q.cols), rows(o.k),
              rows(o.v), MatrixView<float>(y.data(), 1, o.q.cols));
          expected.insert(expected.end(), y.begin(), y.end());
        }
        for (int64_t j = 0; j < std::max<int64_t>(0, before + 1 - window); ++j) {
          for (int64_t c = 0; c < o.k.cols; ++c) {
            o.k.view()(j, c) = o.v.view()(j, c) = j % 2 ? 1e4f : -1e4f;
          }
        }
        Spaced y(tokens, o.q.cols);
        attention(kernel(), shape, o.q.view(), o.k.view(), o.v.view(), y.view());
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < o.q.cols; ++c) {
            ASSERT_NEAR(y.view()(t, c), expected[static_cast<size_t>(t * o.q.cols + c)],
                        2e-6)
                << "token " << t << ", column " << c;
          }
        }
        ASSERT_TRUE(y.gaps_untouched());
      }
    }
  }
}

// Scores so far apart that all weights but one vanish, and an exp of +-100 would
// overflow.
TEST_P(AttentionRow, LargeScoresPickOneValue) {
  const AttentionShape shape{1, 1, 8, 1.0f};
  for (int64_t tokens : {1, 5}) {
    Operands o(tokens, 20, shape, 1);
    for (int64_t j = 0; j < o.k.rows; ++j) {
      for (int64_t d = 0; d < 8; ++d) o.k.view()(j, d) = j == 7 ? 100.0f : -100.0f;
    }
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < 8; ++d) o.q.view()(t, d) = 1;
    }
    Spaced y(tokens, 8);
    attention(kernel(), shape, o.q.view(), o.k.view(), o.v.view(), y.view());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < 8; ++d) EXPECT_FLOAT_EQ(y.view()(t, d), o.v.view()(7, d));
    }
  }
}

// A token's output must not depend on the tokens after it, and with equal keys it is the
// mean.
TEST_P(AttentionRow, IsCausal) {
  const AttentionShape shape{2, 1, 16, 0.25f};
  for (int64_t tokens : {2, 9}) {
    Operands o(tokens, 3, shape, 5);
    for (int64_t j = 0; j < o.k.rows; ++j) {
      for (int64_t d = 0; d < 16; ++d) o.k.view()(j, d) = 1;
    }
    for (int64_t d = 0; d < 16; ++d)
      o.v.view()(o.v.rows - 1, d) = 1e6f;  // the last token's
    Spaced y(tokens, 32);
    attention(kernel(), shape, o.q.view(), o.k.view(), o.v.view(), y.view());
    for (int64_t t = 0; t < tokens; ++t) {
      double mean = 0;
      for (int64_t j = 0; j < 4 + t; ++j)
        mean += o.v.view()(j, 5) / static_cast<double>(4 + t);
      EXPECT_NEAR(y.view()(t, 5), mean, 1e-5 * std::max(1.0, std::fabs(mean)))
          << "token " << t;
    }
  }
}

TEST_P(AttentionRow, GivesTheSameBytesAtAnyThreadCount) {
  const AttentionShape shape{6, 2, 64, 0.125f};
  for (int64_t tokens : {1, 3, 37}) {
    const Operands o(tokens, 50, shape, 9);
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      set_thread_count(threads);
      std::vector<float> y(static_cast<size_t>(tokens * 384), kPoison);
      attention(kernel(), shape, o.q.view(), o.k.view(), o.v.view(),
                MatrixView<float>(y.data(), tokens, 384));
      if (first.empty()) first = y;
      EXPECT_TRUE(same_bytes(first, y)) << tokens << " tokens, " << threads << " threads";
      EXPECT_FALSE(std::isnan(y.back()));
    }
  }
}

// The gradients of sum(dy * y) and the figures of their bounds (attention.h).
struct Gradients {
  Spaced q, k, v;
  explicit Gradients(const Operands& o)
      : q(o.q.rows, o.q.cols), k(o.k.rows, o.k.cols), v(o.v.rows, o.v.cols) {}
};

struct GradientBounds {
  double q = 0, k = 0, v = 0;
};
GradientBounds bounds(const Operands& o, const Spaced& dy, int64_t sequences) {
  const AttentionShape& shape = o.shape;
  const int64_t length = o.q.rows / sequences, dim = shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  double largest = 1, pull = 0, sum = 0, key = 0, query = 0, most = 0;
  const auto peak = [](const Spaced& x) {
    double found = 0;
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c)
        found = std::max(found, std::fabs(static_cast<double>(x.view()(r, c))));
    }
    return found;
  };
  key = peak(o.k), query = peak(o.q), most = peak(dy);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
      std::vector<double> sums(static_cast<size_t>(length));
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        for (int64_t t = 0; t < length; ++t) {
          std::vector<double> a;
          const int64_t begin = shape.first_seen(t);
          for (int64_t j = begin; j < shape.end_seen(t, length); ++j) {
            double score = 0, size = 0, value = 0;
            for (int64_t d = 0; d < dim; ++d) {
              const double x =
                  static_cast<double>(o.q.view()(s * length + t, h * dim + d)) *
                  o.k.view()(s * length + j, kv * dim + d);
              score += x * shape.scale;
              size += std::fabs(x) * shape.scale;
              value +=
                  std::fabs(static_cast<double>(dy.view()(s * length + t, h * dim + d)) *
                            o.v.view()(s * length + j, kv * dim + d));
            }
            largest = std::max(largest, size);
            pull = std::max(pull, value);
            a.push_back(score);
          }
          const double top = *std::max_element(a.begin(), a.end());
          double total = 0;
          for (double& x : a) total += x = std::exp(x - top);
          for (size_t j = 0; j < a.size(); ++j)
            sums[static_cast<size_t>(begin) + j] += a[j] / total;
        }
      }
      sum = std::max(sum, *std::max_element(sums.begin(), sums.end()));
    }
  }
  const double e =
      (8 * static_cast<double>(dim + 8) * largest + 2 * static_cast<double>(length + 8)) *
      0x1p-24;
  return {8 * e * shape.scale * pull * key, 8 * e * shape.scale * pull * sum * query,
          4 * e * sum * most};
}

void expect_near(const Spaced& found, const Spaced& expected, double bound,
                 const char* what) {
  for (int64_t r = 0; r < found.rows; ++r) {
    for (int64_t c = 0; c < found.cols; ++c) {
      ASSERT_LE(std::fabs(found.view()(r, c) - expected.view()(r, c)), bound)
          << what << ", row " << r << ", column " << c << ": " << found.view()(r, c)
          << " where " << expected.view()(r, c) << " was expected";
    }
  }
  ASSERT_TRUE(found.gaps_untouched()) << what;
}

TEST_P(AttentionRow, GradientsAreTheDefinitions) {
  struct Case {
    int64_t heads, kv_heads, head_dim, window;
    bool causal;
  };
  for (const Case& c :
       {Case{6, 2, 64, 0, true}, Case{4, 4, 8, 0, true}, Case{3, 1, 80, 0, false},
        Case{2, 2, 20, 7, true}, Case{4, 2, 32, 40, true}, Case{2, 1, 33, 130, true}}) {
    AttentionShape shape{c.heads, c.kv_heads, c.head_dim,
                         1.0f / std::sqrt(static_cast<float>(c.head_dim))};
    shape.window = c.window;
    shape.causal = c.causal;
    for (int64_t length : {1, 2, 5, 31, 33, 96, 97, 200}) {
      const int64_t sequences = length < 40 ? 3 : 1;
      SCOPED_TRACE(cat(c.heads, " heads, ", c.kv_heads, " of keys, dim ", c.head_dim,
                       ", window ", c.window, ", ", sequences, " x ", length));
      const Operands o(sequences * length, 0, shape, static_cast<uint64_t>(length));
      const Spaced dy(random_floats(o.q.rows * o.q.cols, 77), o.q.rows, o.q.cols, 5);
      Gradients found(o), expected(o);
      attention_backward(kernel(), shape, sequences, o.q.view(), o.k.view(), o.v.view(),
                         dy.view(), found.q.view(), found.k.view(), found.v.view());
      attention_backward_reference(shape, sequences, o.q.view(), o.k.view(), o.v.view(),
                                   dy.view(), expected.q.view(), expected.k.view(),
                                   expected.v.view());
      const GradientBounds bound = bounds(o, dy, sequences);
      expect_near(found.q, expected.q, bound.q, "dq");
      expect_near(found.k, expected.k, bound.k, "dk");
      expect_near(found.v, expected.v, bound.v, "dv");
    }
  }
}

// The reference's own gradients against differences of the forward reference.
TEST_F(OpTest, AttentionsReferenceGradientsAreSlopes) {
  AttentionShape shape{2, 1, 4, 0.5f};
  shape.window = 3;
  Operands o(5, 0, shape, 3);
  const Spaced dy(random_floats(5 * 8, 4), 5, 8);
  Gradients g(o);
  attention_backward_reference(shape, 1, o.q.view(), o.k.view(), o.v.view(), dy.view(),
                               g.q.view(), g.k.view(), g.v.view());
  const auto loss = [&] {
    Spaced y(5, 8);
    attention_reference(shape, o.q.view(), o.k.view(), o.v.view(), y.view());
    double sum = 0;
    for (int64_t t = 0; t < 5; ++t) {
      for (int64_t c = 0; c < 8; ++c)
        sum += static_cast<double>(y.view()(t, c)) * dy.view()(t, c);
    }
    return sum;
  };
  const auto check = [&](Spaced& x, const Spaced& gradient, const char* what) {
    constexpr float kStep = 0x1p-7f;  // the reference rounds y to f32
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) {
        const float was = x.view()(r, c);
        x.view()(r, c) = was + kStep;
        const double above = loss();
        x.view()(r, c) = was - kStep;
        const double slope = (above - loss()) / (2 * kStep);
        x.view()(r, c) = was;
        EXPECT_NEAR(gradient.view()(r, c), slope, 2e-4) << what << " " << r << " " << c;
      }
    }
  };
  check(o.q, g.q, "dq");
  check(o.k, g.k, "dk");
  check(o.v, g.v, "dv");
}

TEST_P(AttentionRow, GradientsHaveTheSameBytesAtAnyThreadCount) {
  const AttentionShape shape{6, 2, 64, 0.125f};
  const Operands o(2 * 150, 0, shape, 9);
  const Spaced dy(random_floats(o.q.rows * o.q.cols, 5), o.q.rows, o.q.cols);
  std::vector<float> first[3];
  for (int threads : {1, 2, 3}) {
    set_thread_count(threads);
    Gradients g(o);
    attention_backward(kernel(), shape, 2, o.q.view(), o.k.view(), o.v.view(), dy.view(),
                       g.q.view(), g.k.view(), g.v.view());
    const std::vector<float>* found[] = {&g.q.data, &g.k.data, &g.v.data};
    for (int i = 0; i < 3; ++i) {
      if (threads == 1) first[i] = *found[i];
      EXPECT_TRUE(same_bytes(first[i], *found[i])) << threads << " threads, " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, AttentionRow,
                         ::testing::Range<size_t>(0, attention_kernels().size()),
                         [](const auto& info) {
                           return test_name(attention_kernels()[info.param].name);
                         });

class AttentionTable : public OpTest {};

TEST_F(AttentionTable, FollowsTheForcedLevel) {
  for (const std::string& level : cpu_levels()) {
    ASSERT_TRUE(force_cpu(level).ok());
    EXPECT_EQ(select_attention().name, "attention_f32__" + isa_under(level));
  }
  EXPECT_STREQ(select_attention(kCpuAvx2 | kCpuAvx512).name, "attention_f32__avx2");
}

}  // namespace
}  // namespace nibble
