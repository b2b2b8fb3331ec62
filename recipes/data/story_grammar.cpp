#include "recipes/data/story_grammar.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>
#include <string_view>

#include "kernels/base/splitmix64.h"

namespace nibble {
namespace {

struct Option {
  const char* text;
  int weight = 1;
};
using Choices = std::vector<Option>;

// --- the words. Nothing that follows "a" begins with a vowel.
const Choices kOpenings = {
    {"once upon a time", 6}, {"long ago", 3}, {"many years ago", 2}, {"one summer", 1}};
const Choices kHomeSizes = {{"small", 4}, {"quiet", 3}, {"busy", 2}, {"sunny", 1}};
const Choices kHomes = {
    {"town", 4}, {"village", 4}, {"valley", 2}, {"castle", 1}, {"farmhouse", 1}};
const Choices kTempers = {{"little", 6}, {"kind", 4},  {"brave", 3}, {"clever", 3},
                          {"shy", 2},    {"funny", 2}, {"silly", 1}, {"gentle", 1}};
const Choices kKinds = {{"girl", 6},   {"boy", 6},  {"cat", 2},   {"dog", 2},
                        {"rabbit", 2}, {"bear", 2}, {"mouse", 1}, {"fox", 1}};
constexpr size_t kGirl = 0, kBoy = 1;  // of kKinds; the others take any name
// The first kGirlNames are girls' names, the rest boys'.
constexpr size_t kGirlNames = 12;
const Choices kNames = {{"Lily", 4}, {"Anna", 4},  {"Mia", 3},  {"Zoe", 3},  {"Sue", 2},
                        {"Emma", 2}, {"Rosa", 2},  {"Nina", 2}, {"Lucy", 1}, {"Ella", 1},
                        {"Ruby", 1}, {"Clara", 1}, {"Tom", 4},  {"Ben", 4},  {"Max", 3},
                        {"Sam", 3},  {"Leo", 2},   {"Tim", 2},  {"Jack", 2}, {"Finn", 2},
                        {"Omar", 1}, {"Hugo", 1},  {"Dan", 1},  {"Paul", 1}};
const Choices kActivities = {{"sing", 3},       {"dance", 3},      {"paint", 2},
                             {"read", 2},       {"swim", 2},       {"climb trees", 1},
                             {"bake cakes", 1}, {"tell jokes", 1}, {"play chess", 1},
                             {"ride a bike", 1}};
const Choices kColors = {{"red", 4},  {"blue", 4},  {"green", 3}, {"yellow", 3},
                         {"pink", 2}, {"white", 2}, {"black", 2}, {"purple", 1}};
const Choices kGarments = {
    {"hat", 3}, {"scarf", 2}, {"coat", 2}, {"sweater", 1}, {"ribbon", 1}};
const Choices kJobs = {{"doctor", 2}, {"pilot", 2}, {"farmer", 2}, {"teacher", 2},
                       {"sailor", 1}, {"baker", 1}, {"singer", 1}, {"painter", 1}};
const Choices kFriendships = {
    {"best friend was a", 3}, {"neighbor was a", 2}, {"favorite cousin was a", 1}};
const Choices kWeathers = {{"sunny", 5}, {"warm", 3},  {"windy", 3}, {"cold", 2},
                           {"rainy", 2}, {"foggy", 1}, {"snowy", 1}};
const Choices kTimes = {{"morning", 3}, {"day", 3}, {"afternoon", 2}};
const Choices kPlaces = {{"park", 4},   {"beach", 3},  {"garden", 3}, {"lake", 2},
                         {"forest", 2}, {"market", 2}, {"river", 2},  {"hill", 1},
                         {"meadow", 1}, {"harbor", 1}};
const Choices kTravels = {
    {"went to", 4}, {"walked to", 3}, {"ran to", 2}, {"rode to", 1}};
const Choices kContainers = {
    {"basket", 3}, {"bag", 3}, {"box", 2}, {"bucket", 1}, {"jar", 1}};
const Choices kToys = {{"ball", 4}, {"kite", 3}, {"doll", 2},  {"drum", 2},
                       {"boat", 2}, {"car", 2},  {"robot", 1}, {"whistle", 1}};
const Choices kAnimals = {{"duck", 3},  {"frog", 3}, {"bird", 3},  {"horse", 2},
                          {"goat", 2},  {"pig", 2},  {"snake", 1}, {"turtle", 1},
                          {"sheep", 1}, {"bee", 1}};
const Choices kSpots = {{"under the bench", 3},    {"behind the tree", 3},
                        {"in the tall grass", 2},  {"near the bridge", 2},
                        {"beside the wall", 2},    {"between two rocks", 1},
                        {"on top of the roof", 1}, {"inside the well", 1}};
const Choices kTreats = {{"cake", 3}, {"pie", 2},   {"bread", 2},
                         {"soup", 2}, {"honey", 1}, {"milk", 1}};
const Choices kFeelings = {
    {"happy", 5}, {"proud", 3}, {"tired but happy", 2}, {"full of joy", 1}};
const Choices kNumbers = {{"one"},  {"two"}, {"three"},  {"four"},
                          {"five"}, {"six"}, {"seven"},  {"eight"},
                          {"nine"}, {"ten"}, {"eleven"}, {"twelve"}};

// Things to count, and the word for all of them together: things[first .. last).
const Choices kThings = {{"apples", 4},   {"pears", 3},   {"plums", 2},   {"lemons", 2},
                         {"cherries", 1}, {"roses", 3},   {"tulips", 3},  {"daisies", 2},
                         {"poppies", 1},  {"shells", 3},  {"stones", 3},  {"feathers", 2},
                         {"coins", 2},    {"buttons", 1}, {"marbles", 3}, {"balloons", 2},
                         {"puppets", 2},  {"blocks", 1}};
struct Category {
  const char* name;
  size_t first, last;
};
constexpr Category kCategories[] = {
    {"fruits", 0, 5}, {"flowers", 5, 9}, {"treasures", 9, 14}, {"toys", 14, 18}};

// Writes a story from a random stream, or reads one: the same walk through the grammar
// does both, so that they cannot disagree.
class Teller {
 public:
  explicit Teller(uint64_t seed) : random_(seed) {}  // writes
  explicit Teller(const std::string& text) : random_(0), text_(text), reading_(true) {}

  // Fixed words. Spaces and capitals come by themselves; punctuation sticks to what
  // precedes.
  void say(std::string_view words) { accept(spelled(words)); }
  template <class... More>
  void say(std::string_view words, const More&... more) {
    say(words);
    (say(more), ...);
  }
  void open_quote() {
    accept(" \"");
    quote_opened_ = true;
  }
  void close_quote() {
    accept("\"");
    sentence_starts_ = false;  // `said Lily` follows
  }

  // One of the options at positions [first, last) but not in `except`; says it.
  size_t choose(const Choices& options, std::initializer_list<size_t> except = {},
                size_t first = 0, size_t last = SIZE_MAX) {
    std::vector<size_t> allowed;
    for (size_t i = first; i < std::min(last, options.size()); ++i)
      if (std::find(except.begin(), except.end(), i) == except.end())
        allowed.push_back(i);
    return choose_among(options, allowed);
  }
  size_t choose_among(const Choices& options, const std::vector<size_t>& allowed) {
    int64_t total = 0;
    for (size_t i : allowed) total += options[i].weight;
    size_t chosen = SIZE_MAX;
    if (reading_) {
      for (size_t i : allowed)
        if (chosen == SIZE_MAX && matches(spelled(options[i].text))) chosen = i;
      if (chosen == SIZE_MAX) {
        failed_ = true;  // the walk goes on, reading nothing, to its end
        return allowed.front();
      }
    } else {
      int64_t draw = static_cast<int64_t>(random_.below(static_cast<uint64_t>(total)));
      for (size_t i : allowed) {
        chosen = i;
        draw -= options[i].weight;
        if (draw < 0) break;
      }
    }
    log_probability_ += std::log(static_cast<double>(options[chosen].weight) /
                                 static_cast<double>(total));
    if (seen_) seen_->insert(&options);
    accept(spelled(options[chosen].text));
    return chosen;
  }
  // A number word for first .. last, all as likely.
  int choose_number(int first, int last) {
    return static_cast<int>(choose(kNumbers, {}, static_cast<size_t>(first - 1),
                                   static_cast<size_t>(last))) +
           1;
  }

  double log_probability() const { return log_probability_; }
  const std::string& text() const { return text_; }
  bool read_all() const { return !failed_ && at_ == text_.size(); }
  void record(std::set<const Choices*>* seen) { seen_ = seen; }

 private:
  // The words as they stand at this place of the story.
  std::string spelled(std::string_view words) const {
    std::string out;
    const bool punctuation =
        words[0] == '.' || words[0] == ',' || words[0] == '!' || words[0] == '?';
    if (at_ > 0 && !punctuation && !quote_opened_) out += ' ';
    out += words;
    if (sentence_starts_ || quote_opened_) {
      char& letter = out[out.size() - words.size()];
      if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
    }
    return out;
  }
  // Whole words: "cat" does not match "cats".
  bool matches(const std::string& piece) const {
    if (failed_ || text_.compare(at_, piece.size(), piece) != 0) return false;
    const size_t end = at_ + piece.size();
    if (end == text_.size()) return true;
    const char next = text_[end];
    return !((next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z'));
  }
  void accept(const std::string& piece) {
    if (reading_) {
      // A closing or opening quote may touch a letter; words may not.
      const bool quote = piece.back() == '"';
      if (quote ? failed_ || text_.compare(at_, piece.size(), piece) != 0
                : !matches(piece)) {
        failed_ = true;
        return;
      }
    } else {
      text_ += piece;
    }
    at_ += piece.size();
    const char last = piece.back();
    if (last != '"') sentence_starts_ = last == '.' || last == '!' || last == '?';
    quote_opened_ = false;
  }

  SplitMix64 random_;
  std::string text_;
  size_t at_ = 0;  // characters written or read
  bool reading_ = false, failed_ = false;
  bool sentence_starts_ = true, quote_opened_ = false;
  double log_probability_ = 0;
  std::set<const Choices*>* seen_ = nullptr;
};

struct Person {
  size_t name_index = 0;
  const char* name = "";
  const char* kind = "";
  bool girl = false;
  const char* she() const { return girl ? "she" : "he"; }
  const char* her() const { return girl ? "her" : "his"; }  // her hat
};

enum class Trait { activity, garment, job };

// What the later sentences must agree with.
struct Scene {
  Person hero, companion;
  const char *temper = "", *home = "", *weather = "", *time = "", *place = "";
  Trait trait = Trait::activity;
  const char *trait_color = "", *trait_word = "";
};

Person introduce_person(Teller& t, size_t name_taken) {
  Person person;
  const size_t kind = t.choose(kKinds);
  person.kind = kKinds[kind].text;
  t.say("named");
  const size_t first = kind == kBoy ? kGirlNames : 0;
  const size_t last = kind == kGirl ? kGirlNames : kNames.size();
  person.name_index = t.choose(kNames, {name_taken}, first, last);
  person.name = kNames[person.name_index].text;
  person.girl = person.name_index < kGirlNames;
  return person;
}

void beginning(Teller& t, Scene& s) {
  t.choose(kOpenings);
  t.say(",", "in a");
  t.choose(kHomeSizes);
  s.home = kHomes[t.choose(kHomes)].text;
  t.say(",", "there lived a");
  s.temper = kTempers[t.choose(kTempers)].text;
  s.hero = introduce_person(t, SIZE_MAX);
  t.say(".", s.hero.she());
  static const Choices kTraits = {
      {"loved to", 3}, {"always wore a", 3}, {"wanted to be a", 2}};
  s.trait = static_cast<Trait>(t.choose(kTraits));
  if (s.trait == Trait::activity) {
    s.trait_word = kActivities[t.choose(kActivities)].text;
  } else if (s.trait == Trait::garment) {
    s.trait_color = kColors[t.choose(kColors)].text;
    s.trait_word = kGarments[t.choose(kGarments)].text;
  } else {
    s.trait_word = kJobs[t.choose(kJobs)].text;
  }
  t.say(".", s.hero.her());
  t.choose(kFriendships);
  s.companion = introduce_person(t, s.hero.name_index);
  t.say(".", "one");
  s.weather = kWeathers[t.choose(kWeathers)].text;
  s.time = kTimes[t.choose(kTimes)].text;
  t.say(",", s.hero.name, "and", s.companion.name);
  t.choose(kTravels);
  t.say("the");
  s.place = kPlaces[t.choose(kPlaces)].text;
  t.say(".");
}

// Counting: the numbers add up, and some may be taken away.
void plot_collect(Teller& t, const Scene& s) {
  static const Choices kFinds = {
      {"many fruits", 3}, {"many flowers", 3}, {"many treasures", 2}, {"many toys", 1}};
  const Category& category = kCategories[t.choose(kFinds)];
  t.say(".", s.hero.name, "took");
  const int first = t.choose_number(2, 6);
  t.choose(kColors);
  const size_t thing = t.choose(kThings, {}, category.first, category.last);
  t.say("and", s.companion.name, "took");
  const int second = t.choose_number(2, 6);
  t.choose(kColors);
  t.choose(kThings, {thing}, category.first, category.last);
  t.say(".", "they put them in a");
  const char* container = kContainers[t.choose(kContainers)].text;
  t.say(".");
  static const Choices kTurns = {{"they counted", 3}, {"then a hungry", 2}};
  int total = first + second;
  if (t.choose(kTurns) == 0) {
    t.say(kNumbers[total - 1].text, category.name, "in the", container, ".");
    return;
  }
  const char* animal = kAnimals[t.choose(kAnimals)].text;
  t.say("came and took");
  total -= t.choose_number(2, std::min(4, total - 2));
  t.say(".", "the", animal, "left", kNumbers[total - 1].text, category.name, "in the",
        container, ".");
}

// A toy is lost, looked for, and found by the other one.
void plot_lost(Teller& t, const Scene& s) {
  t.say(s.hero.name, "lost", s.hero.her());
  const char* color = kColors[t.choose(kColors)].text;
  const char* toy = kToys[t.choose(kToys)].text;
  t.say(".", "they looked");
  const size_t first = t.choose(kSpots);
  t.say("and");
  const size_t second = t.choose(kSpots, {first});
  t.say(",", "but the", toy, "was not there.", s.companion.name, "looked");
  const size_t third = t.choose(kSpots, {first, second});
  t.say("and found it!");
  static const Choices kThanks = {{"thank you", 3}, {"well done", 2}, {"hooray", 1}};
  t.open_quote();
  t.choose(kThanks);
  t.say(",", s.companion.name, "!");
  t.close_quote();
  t.say("said", s.hero.name, ".", "the", color, toy, "had been", kSpots[third].text, ".");
}

// Two sightings; which was where is asked later.
void plot_sights(Teller& t, const Scene& s) {
  t.say("a");
  const char* first_color = kColors[t.choose(kColors)].text;
  const size_t first = t.choose(kAnimals);
  const size_t first_spot = t.choose(kSpots);
  t.say("and a");
  const char* second_color = kColors[t.choose(kColors)].text;
  const size_t second = t.choose(kAnimals, {first});
  const size_t second_spot = t.choose(kSpots, {first_spot});
  t.say(".", s.hero.name, "drew the", first_color, kAnimals[first].text, "and",
        s.companion.name, "drew the", second_color, kAnimals[second].text, ".");
  t.open_quote();
  t.say("where was the");
  const bool asks_first = t.choose_among(kAnimals, {first, second}) == first;
  t.say("?");
  t.close_quote();
  t.say("asked", s.companion.name, ".");
  t.open_quote();
  t.say("it was", kSpots[asks_first ? first_spot : second_spot].text, "!");
  t.close_quote();
  t.say("said", s.hero.name, ".");
}

// Giving some away: the numbers subtract.
void plot_share(Teller& t, const Scene& s) {
  t.say(s.hero.name, "opened a");
  const char* container = kContainers[t.choose(kContainers)].text;
  t.say("with");
  const int all = t.choose_number(5, 12);
  const size_t thing = t.choose(kThings);
  const char* category = "";
  for (const Category& c : kCategories)
    if (thing >= c.first && thing < c.last) category = c.name;
  t.say(".", s.hero.she(), "gave");
  const int given = t.choose_number(2, std::min(6, all - 2));
  t.say("of the", category, "to", s.companion.name, ".", "now", s.hero.name, "had",
        kNumbers[all - given - 1].text, kThings[thing].text, "in", s.hero.her(),
        container, "and", s.companion.name, "had", kNumbers[given - 1].text, ".");
}

// Trading: who has what is the other way round at the end.
void plot_trade(Teller& t, const Scene& s) {
  t.say(s.hero.name, "had a");
  const char* first_color = kColors[t.choose(kColors)].text;
  const size_t first = t.choose(kToys);
  t.say("and", s.companion.name, "had a");
  const char* second_color = kColors[t.choose(kColors)].text;
  const size_t second = t.choose(kToys, {first});
  t.say(".");
  static const Choices kTrades = {{"they played and then traded", 2}, {"they traded", 3}};
  t.choose(kTrades);
  t.say(".", "now", s.companion.name, "had the", first_color, kToys[first].text, "and",
        s.hero.name, "had the", second_color, kToys[second].text, ".");
}

// What an animal lacks decides what it is given.
void plot_help(Teller& t, const Scene& s) {
  t.say("a");
  static const Choices kNeeds = {{"hungry", 4}, {"cold", 3}, {"lost", 2}, {"sad", 2}};
  const size_t need = t.choose(kNeeds);
  const char* animal = kAnimals[t.choose(kAnimals)].text;
  t.choose(kSpots);
  t.say(".");
  const bool hero_helps =
      t.choose_among(kNames, {s.hero.name_index, s.companion.name_index}) ==
      s.hero.name_index;
  const Person& helper = hero_helps ? s.hero : s.companion;
  const char* gift = "";
  const char* given = "the";
  if (need == 0) {
    t.say("gave it some");
    gift = kTreats[t.choose(kTreats)].text;
  } else if (need == 1) {
    t.say("gave it", helper.her());
    gift = kGarments[t.choose(kGarments)].text;
  } else if (need == 2) {
    t.say("showed it the way to the");
    gift = kHomes[t.choose(kHomes)].text;
    given = "the way to the";
  } else {
    t.say("sang it a song about a");
    gift = kToys[t.choose(kToys)].text;
    given = "the song about the";
  }
  t.say(".", "the", animal, "was not", kNeeds[need].text, "now and liked", given, gift,
        ".", "it thanked", helper.name, "and", helper.she(), "smiled.");
}

void ending(Teller& t, const Scene& s) {
  t.choose_among(kNames, {s.hero.name_index, s.companion.name_index});
  t.say("was");
  t.choose(kFeelings);
  t.say(".");
  static const Choices kReturns = {{"they walked back to the", 3},
                                   {"they never forgot that", 2},
                                   {"what a good friend", 1}};
  switch (t.choose(kReturns)) {
    case 0:
      t.say(s.home, "and told of the", s.place, ".");
      break;
    case 1:
      t.say(s.weather, s.time, "at the", s.place, ".");
      break;
    default:
      t.say("the", s.temper, s.hero.kind, "had!");
  }
  t.say("at night", s.hero.name);
  switch (s.trait) {
    case Trait::activity:
      t.say("was too tired to", s.trait_word, ".");
      break;
    case Trait::garment:
      t.say("took off", s.hero.her(), s.trait_color, s.trait_word, ".");
      break;
    case Trait::job:
      t.say("dreamed", s.hero.she(), "was a", s.trait_word, ".");
  }
}

struct Plot {
  const char* begins;  // its first words
  int weight;
  void (*tell)(Teller&, const Scene&);
};
constexpr Plot kPlots[] = {
    {"there they found", 4, plot_collect}, {"on the way", 3, plot_lost},
    {"the friends saw", 3, plot_sights},   {"they sat down and", 3, plot_share},
    {"that day", 2, plot_trade},           {"soon they met", 2, plot_help},
};

void tell_story(Teller& t) {
  static const Choices kBeginnings = [] {
    Choices choices;
    for (const Plot& plot : kPlots) choices.push_back({plot.begins, plot.weight});
    return choices;
  }();
  Scene scene;
  beginning(t, scene);
  kPlots[t.choose(kBeginnings)].tell(t, scene);
  ending(t, scene);
}

}  // namespace

Story make_story(uint64_t seed, uint64_t index) {
  Teller teller(mix64(mix64(seed) + index));
  tell_story(teller);
  return {teller.text(), teller.log_probability()};
}

double story_log_probability(const std::string& text) {
  Teller teller(text);
  tell_story(teller);
  return teller.read_all() ? teller.log_probability()
                           : -std::numeric_limits<double>::infinity();
}

std::vector<std::vector<std::string>> story_choices(uint64_t stories) {
  std::set<const Choices*> seen;
  for (uint64_t i = 0; i < stories; ++i) {
    Teller teller(mix64(mix64(1) + i));
    teller.record(&seen);
    tell_story(teller);
  }
  std::vector<std::vector<std::string>> out;
  for (const Choices* choices : seen) {
    out.emplace_back();
    for (const Option& option : *choices) out.back().push_back(option.text);
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace nibble
