#include "recipes/cli/console.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>

#include "kernels/base/status.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

std::string seconds_text(double seconds) {
  const int64_t whole = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
  if (whole < 60) return cat(whole, " s");
  if (whole < 3600) return cat(whole / 60, " min ", whole % 60, " s");
  return cat(whole / 3600, " h ", whole % 3600 / 60, " min");
}

// One for the process: the terminal has one last line.
class ProgressLine {
 public:
  static ProgressLine& instance() {
    static ProgressLine line;
    return line;
  }

  void update(const std::string& stage, const std::string& what, int64_t done,
              int64_t total) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Clock::time_point now = Clock::now();
    const bool starts = stage != stage_ || done < done_;
    if (starts) {
      finish_line();
      stage_ = stage;
      start_ = now;
      first_ = done;
      tenth_ = -1;
    }
    done_ = done;
    const bool ends = total > 0 && done >= total;
    if (!terminal_) {
      plain(what, done, total, starts, ends, now);
      return;
    }
    const double since = std::chrono::duration<double>(now - drawn_).count();
    if (!starts && !ends && since < 0.1) return;
    drawn_ = now;
    std::string line = text(what, done, total, now);
    if (line.size() > 110) line.resize(110);
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    std::fflush(stderr);
    open_ = true;
    if (ends) finish_line();
  }

  void note(const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (open_) std::fprintf(stderr, "\r\x1b[K");
    std::fprintf(stderr, "%s\n", line.c_str());
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    finish_line();
  }

 private:
  ProgressLine() : terminal_(isatty(STDERR_FILENO) == 1) {}

  std::string text(const std::string& what, int64_t done, int64_t total,
                   Clock::time_point now) const {
    std::string line = stage_;
    if (total > 0) line += cat(" ", done, "/", total);
    if (!what.empty()) line += " " + what;
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const int64_t made = done - first_;  // a resumed run starts in the middle
    if (total > 0 && done >= total) {
      line += ", " + seconds_text(elapsed);
    } else if (total > 0 && made > 0 && elapsed > 1) {
      const double left =
          elapsed * static_cast<double>(total - done) / static_cast<double>(made);
      line += ", " + seconds_text(left) + " left";
    }
    return line;
  }

  void plain(const std::string& what, int64_t done, int64_t total, bool starts, bool ends,
             Clock::time_point now) {
    const int64_t tenth = total > 0 ? done * 10 / total : 0;
    const double since = std::chrono::duration<double>(now - drawn_).count();
    if (!starts && !ends && (tenth == tenth_ || since < 1)) return;
    tenth_ = tenth;
    drawn_ = now;
    std::fprintf(stderr, "%s\n", text(what, done, total, now).c_str());
  }

  void finish_line() {
    if (open_) std::fprintf(stderr, "\n");
    open_ = false;
  }

  const bool terminal_;
  std::mutex mutex_;
  std::string stage_;
  Clock::time_point start_, drawn_;
  int64_t first_ = 0, done_ = 0, tenth_ = -1;
  bool open_ = false;
};

struct LineCloser {
  ~LineCloser() { ProgressLine::instance().close(); }
};

}  // namespace

Progress make_progress() {
  auto closer = std::make_shared<LineCloser>();
  return [closer](const std::string& stage, const std::string& what, int64_t done,
                  int64_t total) {
    ProgressLine::instance().update(stage, what, done, total);
  };
}

std::function<void(int64_t, int64_t)> make_counter(const std::string& stage,
                                                   const std::string& what) {
  return [progress = make_progress(), stage, what](int64_t done, int64_t total) {
    progress(stage, what, done, total);
  };
}

void note(const std::string& line) { ProgressLine::instance().note(line); }

}  // namespace nibble
