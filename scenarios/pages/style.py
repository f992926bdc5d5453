"""How the pages look, in one style sheet that stands inside them; light and dark."""

STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--soft:#6b6b70;--line:#e2e2e6;--back:#fff;
--card:#f7f7f9;
--up:#f5a623;--down:#7aa7e0}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--soft:#9a9aa2;--line:#3a3a40;--back:#17171a;
--card:#212126;--up:#b8730a;--down:#3f6aa3}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .4em}
h2{font-size:1.15rem;margin:1.8em 0 .5em}
.note{border-left:4px solid var(--up);padding:.4em .9em;background:var(--card);margin:0 0 1em}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:18px}
.pair section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:4px 18px}
.pair h2{margin-top:.8em}
.answer{white-space:pre-wrap;overflow-wrap:anywhere}
.answer span,.small span{border-radius:3px}
.small span[style]{color:var(--ink)}
.other{text-decoration:underline 2px;text-underline-offset:3px}
.small,footer,.legend{color:var(--soft);font-size:.86rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
th,td{padding:.32em .6em;border-bottom:1px solid var(--line);text-align:right}
th:first-child{text-align:left;font-weight:500}
tr:first-child th{color:var(--soft);font-weight:600}
.wide{overflow-x:auto}
figure{margin:.6em 0 1.2em}
figcaption{font-size:.9rem;font-weight:600}
figure svg{width:100%;min-width:600px;height:auto}
.roomy{min-width:760px}
.fields td,.fields th{text-align:center;border:2px solid var(--back);font-size:.72rem;
padding:.35em .2em;min-width:9em;line-height:1.4}
.fields td[style]{color:#1d1d1f}
.fields th[scope=row]{text-align:right;font-weight:400;color:var(--soft);
min-width:7em;position:sticky;left:0;background:var(--back)}
.js-plotly-plot .legendtext,.js-plotly-plot .xtick text,.js-plotly-plot .ytick text,
.js-plotly-plot .xtitle,.js-plotly-plot .ytitle,.js-plotly-plot .annotation-text
{fill:var(--soft)!important}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
svg .grid{stroke:var(--line)}
.legend{margin:.8em 0 .2em}
.key{margin-right:1.1em;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
footer{margin-top:3em;border-top:1px solid var(--line);padding-top:1em}
"""
