// The page: tables as HTML, plots by Chart.js, which is embedded once. No time, no path,
// and but for bench no speed: the page is the same bytes wherever the run took place.
#include <algorithm>
#include <map>

#include "kernels/base/json.h"
#include "recipes/report/embedded_files.h"
#include "recipes/report/quality_json.h"
#include "recipes/report/run_report.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

std::string escaped(const std::string& text) {
  std::string html;
  for (const char c : text) {
    switch (c) {
      case '&':
        html += "&amp;";
        break;
      case '<':
        html += "&lt;";
        break;
      case '>':
        html += "&gt;";
        break;
      case '"':
        html += "&quot;";
        break;
      default:
        html += c;
    }
  }
  return html;
}

// JSON inside <script>: "</script" must not appear in it.
std::string script_json(const Json& json) {
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  for (const char c : text) safe += c == '<' ? "\\u003c" : std::string(1, c);
  return safe;
}

std::string html_table(const std::vector<std::vector<std::string>>& rows,
                       const char* css_class) {
  std::string html = cat("<table class=\"", css_class, "\">\n");
  for (size_t r = 0; r < rows.size(); ++r) {
    const char* cell = r == 0 ? "th" : "td";
    html += r == 0 ? "<thead><tr>" : "<tr>";
    for (const std::string& text : rows[r])
      html += cat("<", cell, ">", escaped(text), "</", cell, ">");
    html += r == 0 ? "</tr></thead>\n" : "</tr>\n";
  }
  return html + "</table>\n";
}

// A column a model; of many models a row each, which a page has room for.
std::string summary_table(const std::vector<std::vector<std::string>>& rows) {
  constexpr size_t kColumns = 6;
  if (rows[0].size() <= kColumns) return html_table(rows, "summary");
  std::vector<std::vector<std::string>> turned(rows[0].size());
  for (const std::vector<std::string>& row : rows) {
    for (size_t i = 0; i < turned.size(); ++i)
      turned[i].push_back(i < row.size() ? row[i] : std::string());
  }
  return "<div class=\"wide\">" + html_table(turned, "ledger") + "</div>";
}

std::vector<std::vector<std::string>> ledger_rows(const Ledger& ledger) {
  std::vector<std::vector<std::string>> rows = {
      {"tensor", "scheme", "method", "parameters", "bits each", "weight error",
       "by nearest", "output error", "by nearest", "rows seen", "kernel",
       "reason or note"}};
  const auto known = [](double error) {
    return error >= 0 ? number_text(error, 3) : std::string();
  };
  for (const LedgerEntry& entry : ledger.entries) {
    const double each =
        entry.parameters > 0 ? entry.bits / static_cast<double>(entry.parameters) : 0;
    rows.push_back(
        {entry.tensor, entry.scheme, entry.method, cat(entry.parameters),
         number_text(each, 4), entry.error > 0 ? number_text(entry.error, 3) : "",
         known(entry.rtn_error), known(entry.output_error), known(entry.rtn_output_error),
         entry.tokens > 0 ? cat(entry.tokens) : "", entry.kernel,
         entry.reason.empty() ? entry.note : entry.reason});
  }
  return rows;
}

// Labels and values of the bar plot: quantized layers in ledger order.
Json error_data(const Ledger& ledger) {
  Json labels = Json::array(), weight = Json::array(), output = Json::array();
  bool outputs = false;
  for (const LedgerEntry& entry : ledger.entries) {
    if (entry.error <= 0) continue;
    labels.push_back(entry.tensor);
    weight.push_back(entry.error);
    output.push_back(entry.output_error > 0 ? Json(entry.output_error) : Json());
    outputs = outputs || entry.output_error > 0;
  }
  if (labels.empty()) return Json();
  Json json = {{"labels", labels}, {"weight", weight}};
  if (outputs) json["output"] = output;
  return json;
}

Json loss_data(const std::vector<LossPoint>& loss) {
  if (loss.empty()) return Json();
  Json points = Json::array();
  for (const LossPoint& point : loss)
    points.push_back({{"x", point.step}, {"y", point.loss}});
  return points;
}

// The KL (without a reference: the perplexity) at the middle of each run of positions.
Json position_data(const RunReport& report) {
  Json lines = Json::array();
  const auto add = [&lines](const Measurement& m) {
    if (!m.text || m.text->positions.size() < 2 || !m.text->positions[0].kl) return;
    Json points = Json::array(), low = Json::array(), high = Json::array();
    for (const PositionBucket& bucket : m.text->positions) {
      const double x = static_cast<double>(bucket.begin + bucket.end) / 2;
      points.push_back({{"x", x}, {"y", *bucket.kl}});
      low.push_back({{"x", x}, {"y", bucket.kl_ci95.low}});
      high.push_back({{"x", x}, {"y", bucket.kl_ci95.high}});
    }
    lines.push_back({{"name", m.name}, {"kl", points}, {"low", low}, {"high", high}});
  };
  add(report.after);
  for (const Measurement& part : report.parts) add(part);
  return lines.empty() ? Json() : lines;
}

Json attribution_data(const RunReport& report) {
  if (!report.attribution) return Json();
  Json labels = Json::array(), cost = Json::array(), low = Json::array(),
       high = Json::array();
  for (const LayerCost& layer : report.attribution->layers) {
    labels.push_back(layer.layer);
    cost.push_back(layer.cost);
    low.push_back(layer.ci95.low);
    high.push_back(layer.ci95.high);
  }
  return {{"labels", labels}, {"cost", cost}, {"low", low}, {"high", high}};
}

// One figure of each model that has it: median, and the quartiles.
Json speed_data(const RunReport& report) {
  if (report.verb != "bench") return Json();
  Json sets = Json::array();
  const auto add = [&](const char* name, Rate Speed::*rate) {
    Json labels = Json::array(), values = Json::array();
    for (const Measurement* model : {&report.after, report.before ? &*report.before : nullptr}) {
      if (model == nullptr || !model->speed || ((*model->speed).*rate).repeats == 0) continue;
      labels.push_back(model->name);
      values.push_back(((*model->speed).*rate).median);
    }
    if (!labels.empty()) sets.push_back({{"name", name}, {"labels", labels}, {"values", values}});
  };
  add("decode, tokens a second", &Speed::decode);
  add("prefill, tokens a second", &Speed::prefill);
  add("images a second", &Speed::images);
  add("sentences a second", &Speed::sentences);
  return sets;
}

Json layer_data(const std::vector<LayerSpeed>& layers) {
  if (layers.empty()) return Json();
  Json labels = Json::array(), decode = Json::array(), prefill = Json::array();
  for (const LayerSpeed& kind : layers) {
    labels.push_back({layer_kind_text(kind), kind.kernel});
    decode.push_back(kind.decode.median / 1e9);
    prefill.push_back(kind.prefill.median / 1e9);
  }
  return {{"labels", labels}, {"decode", decode}, {"prefill", prefill}};
}

// Decode against the read bandwidth, prefill against its instruction's peak, one set a
// thread count: every case and the limit of its own rounds.
Json kernel_data(const KernelSpeeds& speeds) {
  if (speeds.cases.empty()) return Json();
  Json sets = Json::array();
  std::vector<int> threads;
  for (const KernelSpeed& s : speeds.cases) {
    if (std::find(threads.begin(), threads.end(), s.threads) == threads.end()) {
      threads.push_back(s.threads);
    }
  }
  for (const bool decode : {true, false}) {
    for (const int count : threads) {
      Json labels = Json::array(), values = Json::array(), limits = Json::array();
      for (const KernelSpeed& s : speeds.cases) {
        if (s.threads != count || (s.of_read.repeats > 0) != decode) continue;
        labels.push_back(kernel_case_text(s));
        values.push_back((decode ? s.bytes : s.operations).median / 1e9);
        const Rate& limit = decode ? s.read : s.peak;
        limits.push_back(limit.repeats > 0 ? Json(limit.median / 1e9) : Json());
      }
      if (labels.empty()) continue;
      const std::string on = cat(count, count == 1 ? " thread" : " threads");
      sets.push_back(
          {{"name", decode ? "weight bytes a second, GB/s" : "operations a second, GFLOP/s"},
           {"title", cat(decode ? "Decode, " : "Prefill, ", on)},
           {"limit", decode ? "read bandwidth" : "peak of the row's instruction"},
           {"labels", labels},
           {"values", values},
           {"limits", limits}});
    }
  }
  return sets;
}

// Size against quality, a point a model, points of one sweep joined by their size. Three
// or more artifacts of a text model are told apart by KL, on a logarithmic axis, which
// the float model, at 0, has no place on; fewer stand beside their float model by
// perplexity.
Json quality_data(const RunReport& report, bool images) {
  std::vector<const Measurement*> models = {&report.after};
  for (const Measurement& other : report.others) models.push_back(&other);
  const bool kl = !images && models.size() > 2 &&
                  std::all_of(models.begin(), models.end(), [](const Measurement* m) {
                    return m->text && m->text->kl && *m->text->kl > 0;
                  });
  if (!kl && report.before) models.insert(models.begin(), &*report.before);
  Json points = Json::array();
  std::map<std::string, std::vector<std::pair<double, double>>>
      curves;  // by what is swept
  int mark = -1;
  for (const Measurement* model : models) {
    double y = 0;
    if (images && model->images) {
      y = model->images->accuracy * 100;
    } else if (!images && model->text) {
      y = kl ? *model->text->kl : model->text->perplexity;
    } else {
      continue;
    }
    if (model == &report.after) mark = static_cast<int>(points.size());
    const double x = static_cast<double>(model->bytes) / 1e6;
    const size_t value = model->name.rfind('=');
    const bool joined = !model->curve.empty() && value != std::string::npos;
    points.push_back({{"name", model->name},
                      {"label", joined ? model->name.substr(value + 1) : model->name},
                      {"below", joined},
                      {"x", x},
                      {"y", y}});
    if (!model->curve.empty()) curves[model->curve].emplace_back(x, y);
  }
  if (points.size() < 2) return Json();
  Json lines = Json::array(), swept = Json::array();
  for (auto& [name, line] : curves) {
    swept.push_back(name);
    std::sort(line.begin(), line.end());
    Json joined = Json::array();
    for (const auto& [x, y] : line) joined.push_back({{"x", x}, {"y", y}});
    lines.push_back(joined);
  }
  const char* measure = images ? "accuracy, %"
                        : kl   ? "KL to the float model, nats a token"
                               : "perplexity (lower is better)";
  return {{"points", points}, {"lines", lines},     {"mark", mark},
          {"log", kl},        {"measure", measure}, {"swept", swept}};
}

constexpr const char* kStyle = R"(
:root{--ink:#1c2430;--soft:#5d6b7e;--line:#e3e8ef;--paper:#fff;--ground:#f6f8fb;--mark:#2f6fde;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa8ba;--line:#2c3644;--paper:#171d26;
--ground:#0f141b;--mark:#6ea0ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:17px;margin:0 0 12px}
p.sub{color:var(--soft);margin:0 0 24px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:20px 22px;margin:0 0 20px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:20px}
.pair section{margin:0}
.pair{margin-bottom:20px}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}
.ledger{font-size:12.5px}.ledger td:first-child{font-family:ui-monospace,"DejaVu Sans Mono",monospace}
.wide{overflow-x:auto}
pre{font:12.5px/1.5 ui-monospace,"DejaVu Sans Mono",monospace;margin:0;white-space:pre-wrap}
ul{margin:8px 0 0;padding-left:18px;color:var(--soft)}
.plot{position:relative;height:300px}.plot.low{height:150px}.plot.tall{height:360px}.plot.tallest{height:640px}
)";

constexpr const char* kPlots = R"(
const css=name=>getComputedStyle(document.documentElement).getPropertyValue(name).trim();
Chart.defaults.animation=false;Chart.defaults.color=css('--soft');
Chart.defaults.font.family='system-ui, "DejaVu Sans", sans-serif';
const data=JSON.parse(document.getElementById('data').textContent);
const blue=css('--mark'),orange='#e08a2c',grid={color:css('--line')};
const short=v=>Number(v).toPrecision(3).replace(/\.?0+($|e)/,'$1');
function plot(id,config){const at=document.getElementById(id);if(at)new Chart(at,config)}
if(data.errors){
  const sets=[{label:'weights',data:data.errors.weight,backgroundColor:blue}];
  if(data.errors.output)sets.push({label:'layer outputs',data:data.errors.output,backgroundColor:orange});
  plot('errors',{type:'bar',data:{labels:data.errors.labels.map(l=>l.replace(/^model\.layers\./,'').replace(/\.weight$/,'')),
    datasets:sets},
    options:{maintainAspectRatio:false,plugins:{legend:{align:'end'}},
      scales:{x:{grid:{display:false},ticks:{maxRotation:90,font:{size:9}}},
        y:{type:'logarithmic',grid,ticks:{callback:short,maxTicksLimit:8},
          title:{display:true,text:'relative squared error'}}}}})}
if(data.positions){
  const colours=[blue,orange,'#3c9d6b','#8b5fbf'];
  plot('positions',{type:'line',data:{datasets:data.positions.flatMap((l,i)=>[
    {label:l.name,data:l.kl,borderColor:colours[i%4],backgroundColor:colours[i%4],borderWidth:2,pointRadius:2},
    {label:'',data:l.low,borderColor:'transparent',pointRadius:0,fill:false},
    {label:'',data:l.high,borderColor:'transparent',pointRadius:0,fill:'-1',backgroundColor:colours[i%4]+'22'}])},
  options:{maintainAspectRatio:false,plugins:{legend:{align:'end',labels:{filter:l=>l.text!==''}}},
    scales:{x:{type:'linear',min:0,grid,title:{display:true,text:'position in the text, tokens'}},
      y:{grid,ticks:{callback:short},title:{display:true,text:'KL, nats a token'}}}}})}
if(data.attribution){
  const a=data.attribution,bars={id:'bars',afterDatasetsDraw(c){const g=c.ctx,y=c.scales.y;g.save();
    g.strokeStyle=css('--ink');c.getDatasetMeta(0).data.forEach((b,i)=>{g.beginPath();
    g.moveTo(b.x,y.getPixelForValue(a.low[i]));g.lineTo(b.x,y.getPixelForValue(a.high[i]));g.stroke()});g.restore()}};
  plot('attribution',{type:'bar',plugins:[bars],data:{labels:a.labels.map(l=>l.replace(/^model\.layers\./,'').replace(/\.weight$/,'')),
    datasets:[{data:a.cost,backgroundColor:blue}]},
    options:{maintainAspectRatio:false,plugins:{legend:{display:false}},
      scales:{x:{grid:{display:false},ticks:{maxRotation:90,font:{size:9}}},y:{grid,ticks:{callback:short}}}}})}
const bars=(id,labels,values,title)=>plot(id,{type:'bar',
  data:{labels,datasets:[{data:values,backgroundColor:blue,maxBarThickness:26}]},
  options:{indexAxis:'y',maintainAspectRatio:false,plugins:{legend:{display:false}},
    scales:{y:{grid:{display:false}},x:{grid,beginAtZero:true,title:{display:true,text:title}}}}});
if(data.speeds)data.speeds.forEach((s,i)=>bars('speed'+i,s.labels,s.values,s.name));
if(data.layers){
  bars('layers_decode',data.layers.labels,data.layers.decode,'weight bytes a second, one token, GB/s');
  bars('layers_prefill',data.layers.labels,data.layers.prefill,'operations a second, prefill, GFLOP/s')}
if(data.kernels)data.kernels.forEach((k,i)=>plot('kernels'+i,{type:'bar',
  data:{labels:k.labels,datasets:[{label:'kernel',data:k.values,backgroundColor:blue},
    {label:k.limit,data:k.limits,backgroundColor:orange}]},
  options:{indexAxis:'y',maintainAspectRatio:false,plugins:{legend:{align:'end'}},
    scales:{y:{grid:{display:false},ticks:{autoSkip:false}},
      x:{grid,beginAtZero:true,title:{display:true,text:k.name}}}}}));
if(data.loss)plot('loss',{type:'line',
  data:{datasets:[{data:data.loss,borderColor:blue,borderWidth:2,pointRadius:0,tension:0}]},
  options:{maintainAspectRatio:false,plugins:{legend:{display:false}},
    scales:{x:{type:'linear',grid,title:{display:true,text:'step'}},
      y:{grid,title:{display:true,text:'training loss, nats'}}}}});
if(data.quality){
  const q=data.quality,names={id:'names',afterDatasetsDraw(c){const g=c.ctx;g.save();g.fillStyle=css('--ink');
    g.font='12px system-ui, "DejaVu Sans", sans-serif';
    const taken=[];  // boxes of names: a later one moves up until it is free
    c.getDatasetMeta(0).data.forEach((p,i)=>{const of=q.points[i],name=of.label,w=g.measureText(name).width;
      const left=of.below||p.x+w+10>c.chartArea.right,x=left?p.x-10-w:p.x+10;let y=of.below?p.y+14:p.y-8;
      while(taken.some(t=>x<t.x+t.w+6&&t.x<x+w+6&&Math.abs(y-t.y)<14))y-=14;
      taken.push({x,y,w});g.fillText(name,x,y)});
    g.restore()}};
  plot('quality',{type:'scatter',plugins:[names],
    data:{datasets:[{data:q.points,backgroundColor:q.points.map((p,i)=>i==q.mark?orange:blue),
      pointRadius:6,pointHoverRadius:8},...q.lines.map(line=>({data:line,showLine:true,pointRadius:0,
      pointHitRadius:0,borderColor:blue,borderWidth:1.5}))]},
    options:{maintainAspectRatio:false,layout:{padding:{top:16}},plugins:{legend:{display:false},
      tooltip:{callbacks:{label:c=>c.raw.name+': '+short(c.raw.x)+' MB, '+short(c.raw.y)}}},
      scales:{x:{grid,beginAtZero:true,title:{display:true,text:'size, MB'}},
        y:{grid,type:q.log?'logarithmic':'linear',grace:'15%',title:{display:true,text:q.measure}}}}})}
)";

std::string plot_section(const std::string& title, const char* id,
                         const char* css_class) {
  return cat("<section><h2>", escaped(title), "</h2><div class=\"", css_class,
             "\"><canvas id=\"", id, "\"></canvas></div></section>\n");
}

}  // namespace

std::string report_html(const RunReport& report) {
  const bool images = report.after.images.has_value();
  Json data = Json::object();
  const Json errors = error_data(report.ledger);
  const Json loss = loss_data(report.loss);
  const Json quality = quality_data(report, images);
  if (!errors.is_null()) data["errors"] = errors;
  if (!loss.is_null()) data["loss"] = loss;
  if (!quality.is_null()) data["quality"] = quality;
  const Json positions = position_data(report);
  const Json attribution = attribution_data(report);
  if (!attribution.is_null()) data["attribution"] = attribution;
  if (!positions.is_null()) data["positions"] = positions;
  const Json speeds = speed_data(report);
  const Json layers = layer_data(report.layers);
  if (!speeds.is_null()) data["speeds"] = speeds;
  if (!layers.is_null()) data["layers"] = layers;
  const Json kernels = kernel_data(report.kernels);
  if (!kernels.is_null()) data["kernels"] = kernels;

  std::vector<const Measurement*> models;
  if (report.before) models.push_back(&*report.before);
  models.push_back(&report.after);
  for (const Measurement& part : report.parts) models.push_back(&part);
  for (const Measurement& other : report.others) models.push_back(&other);

  const std::string title = report.model + ", " + report.recipe_name;
  std::string html = cat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      escaped(title), "</title>\n<style>", kStyle, "</style></head>\n<body><main>\n<h1>",
      escaped(title), "</h1>\n<p class=\"sub\">made by nibble ", escaped(report.verb),
      "</p>\n");

  if (kernels.is_null()) {
    html +=
        "<section><h2>Size and quality</h2>\n" + summary_table(measurement_rows(models));
  } else {
    html += "<section><h2>Limits of this machine</h2><pre>" +
            escaped(kernel_speed_heading(report.kernels)) + "</pre>\n" +
            html_table(limit_rows(report.kernels.limits), "summary");
  }
  html += "<ul>\n";
  if (!report.evaluation.empty())
    html += "<li>Measured on " + escaped(report.evaluation) + "</li>\n";
  if (!report.calibration.empty())
    html += "<li>Calibrated on " + escaped(report.calibration) + "</li>\n";
  if (report.text_noise)
    html += "<li>Noise floor: " +
            escaped(noise_text(*report.text_noise,
                               report.after.text ? &*report.after.text : nullptr)) +
            "</li>\n";
  if (report.image_noise)
    html += "<li>Noise floor: " +
            escaped(noise_text(*report.image_noise,
                               report.after.images ? &*report.after.images : nullptr)) +
            "</li>\n";
  for (const GateResult& gate : report.gates)
    html += "<li>Gate: " + escaped(gate_text(gate)) + "</li>\n";
  for (const std::string& line : report.notes) html += "<li>" + escaped(line) + "</li>\n";
  if (report.verb == "bench") {
    html += "</ul></section>\n";
    for (size_t i = 0; i < kernels.size(); ++i) {
      html += plot_section(kernels[i]["title"].get<std::string>().c_str(),
                           cat("kernels", i).c_str(), "plot tallest");
    }
    if (!kernels.is_null()) {
      html += "<section><h2>Kernels</h2><div class=\"wide\">\n" +
              html_table(kernel_speed_rows(report.kernels), "ledger") + "</div></section>\n";
    }
    html += "<div class=\"pair\">\n";
    for (size_t i = 0; i < speeds.size(); ++i) {
      html += plot_section("Speed", cat("speed", i).c_str(), "plot low");
    }
    html += "</div>\n";
    if (!layers.is_null()) {
      html += plot_section("Each kind of linear layer: decode", "layers_decode", "plot");
      html += plot_section("Each kind of linear layer: prefill", "layers_prefill", "plot");
      html += "<section><h2>Linear layers</h2><div class=\"wide\">\n" +
              html_table(layer_speed_rows(report.layers), "ledger") + "</div></section>\n";
    }
  } else {
    html +=
      "<li>Brackets are 95 % intervals by bootstrap over sequences or images: 2,000 "
      "resamples, fixed seed.</li>\n</ul></section>\n";
  }

  const bool crowded = !quality.is_null() && quality["points"].size() > 6;
  std::string quality_title = "Size against quality";
  if (!quality.is_null()) {
    for (const Json& name : quality["swept"])
      quality_title += "; the line: " + name.get<std::string>();
  }
  if (crowded) html += plot_section(quality_title, "quality", "plot tall");
  if ((!quality.is_null() && !crowded) || !loss.is_null()) {
    html += "<div class=\"pair\">\n";
    if (!quality.is_null() && !crowded)
      html += plot_section(quality_title, "quality", "plot");
    if (!loss.is_null()) html += plot_section("Loss curve", "loss", "plot");
    html += "</div>\n";
  }
  if (!positions.is_null())
    html += plot_section("Error by position", "positions", "plot");
  if (!attribution.is_null())
    html += plot_section(report.attribution->alone
                             ? "KL of each layer quantized alone, nats a token"
                             : "KL won by giving each layer its float weights back",
                         "attribution", "plot tall");
  if (!errors.is_null()) html += plot_section("Error per layer", "errors", "plot tall");
  if (!report.recipe.empty())
    html += "<section><h2>Settings, all of them</h2><pre>" + escaped(report.recipe) +
            "</pre></section>\n";
  if (!report.ledger.entries.empty()) {
    html +=
        "<section><h2>Ledger: what became of every parameter</h2><div class=\"wide\">\n" +
        html_table(ledger_rows(report.ledger), "ledger") + "</div></section>\n";
  }
  html += "</main>\n";
  if (!data.empty()) {
    html += "<script type=\"application/json\" id=\"data\">" + script_json(data) +
            "</script>\n<script>";
    // Debian calls the same file chart.min.js or Chart.min.js.
    std::string_view chart = embedded_file("chart.min.js");
    if (chart.empty()) chart = embedded_file("Chart.min.js");
    html += std::string(chart) + "</script>\n<script>" + kPlots + "</script>\n";
  }
  return html + "</body></html>\n";
}

}  // namespace nibble
