"""The report page's one style sheet: system fonts, two colour schemes, one column on a phone, no scripts."""

CSS = """
:root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--ink:#1f2428;--muted:#5f6870;--rule:#e1e5e8;
--accent:#0b6e75;--second:#c2571a;--third:#5b4b9a;--fourth:#8a7414;--fifth:#a23a5f;--bars:#a9c9cb;
--good:#0b6e4f;--good-soft:#e3f2ec;--warn:#8a5a00;--warn-soft:#fbf0d9;--bad:#a3302b;--bad-soft:#fae6e4;
--plot-font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media (prefers-color-scheme:dark){:root{--page:#14181b;--card:#1b2024;--ink:#e6eaec;--muted:#9aa5ad;
--rule:#2d343a;
--accent:#4fb8bf;--second:#ee9159;--third:#a797e6;--fourth:#d0b84c;--fifth:#e5849f;--bars:#2f5c60;
--good:#6fd0a8;--good-soft:#17332a;--warn:#e6bb62;--warn-soft:#3a2f17;--bad:#f0928c;--bad-soft:#3d2120}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.6 var(--plot-font);
-webkit-text-size-adjust:100%}
main{max-width:1040px;margin:0 auto;padding:clamp(1.25rem,4vw,3rem) clamp(1rem,4vw,2rem) 4rem}
.eyebrow{margin:0;color:var(--accent);font-size:.8rem;font-weight:600;letter-spacing:.08em;
text-transform:uppercase}
h1{margin:.15rem 0 .6rem;font-size:clamp(1.7rem,5vw,2.4rem);line-height:1.15;letter-spacing:-.015em;
overflow-wrap:anywhere}
h2{margin:2.8rem 0 .7rem;font-size:1.2rem;letter-spacing:-.005em}
h3{margin:0 0 .5rem;font-size:1rem}
p{margin:0 0 .8rem}.lead{max-width:46rem;font-size:1.08rem}.note{color:var(--muted);font-size:.88rem}
.text{max-width:46rem}
.figures{display:grid;grid-auto-flow:dense;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.8rem;
margin:1.6rem 0 0;padding:0}
.figures>div,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;
padding:1rem 1.1rem;min-width:0}
.figures>div.wide{grid-column:span 2}
.figures dt{color:var(--muted);font-size:.82rem}
.figures dd{margin:.1rem 0 0;font-size:1.45rem;font-weight:600;line-height:1.25;letter-spacing:-.01em;
font-variant-numeric:tabular-nums}
.figures dd.small{margin-top:.25rem;color:var(--muted);font-size:.84rem;font-weight:400;letter-spacing:0;
line-height:1.45}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:.8rem}
figure{margin:0}figure svg{display:block;width:100%;height:auto}
figcaption{margin-top:.6rem;color:var(--muted);font-size:.85rem;line-height:1.45}
.chip{display:inline-block;padding:.08em .6em;border-radius:1em;font-size:.82rem;font-weight:600;
white-space:nowrap;
background:var(--bad-soft);color:var(--bad)}
.chip.record-dp,.chip.label-dp{background:var(--good-soft);color:var(--good)}
.chip.conditional{background:var(--warn-soft);color:var(--warn)}
.spaced,.pair{margin-top:.8rem}
.card>:last-child,.text>:last-child{margin-bottom:0}.whole{white-space:nowrap}
ul{margin:0;padding-left:1.15rem}li{margin:.3rem 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:.8rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px;
padding:.35rem 1.1rem}
table{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem 1rem .42rem 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{color:var(--muted);font-weight:500}td{overflow-wrap:break-word}
table.settings td{overflow-wrap:anywhere}tr:last-child>*{border-bottom:0}
thead th{white-space:nowrap;font-size:.82rem}
table.settings th{width:40%;font-weight:400}
table.settings td{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.84rem}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--rule);color:var(--muted);
font-size:.85rem}
@media (max-width:560px){.figures{grid-template-columns:1fr 1fr}.figures dd{font-size:1.25rem}}
@media print{body{background:#fff}.card,.scroll,.figures>div{break-inside:avoid}}
""".strip()
