"""How the page looks: one style sheet, light and dark, from a phone to a wide screen."""

from __future__ import annotations

STYLE = """
:root {
  --page: #faf9f6; --sheet: #ffffff; --ink: #23262b; --soft: #63686f; --line: #e4e1da; --grid: #ece9e3;
  --own: #2b6a99; --other: #b4622d; --bad: #a3323a; --bad-sheet: #faeeec; --band: #dfe9f0;
  --text: #6fa08c; --decode: #d2a04c; --host: #aaa59b; --load: #7fabc9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --sheet: #1c1f24; --ink: #e5e3de; --soft: #a0a5ad; --line: #30343b; --grid: #282c32;
    --own: #74b0da; --other: #e09a63; --bad: #f0949a; --bad-sheet: #33211f; --band: #263541;
    --text: #83b8a2; --decode: #d9b067; --host: #777b82; --load: #44708f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 8px 0 4px; font-weight: 600; }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; font-weight: 600; }
h3 { font-size: 15px; margin: 28px 0 8px; font-weight: 600; }
h4 { font-size: 14px; margin: 18px 0 4px; font-weight: 600; }
p { margin: 4px 0; }
a { color: var(--own); }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px 26px;
  margin-top: 24px; }
ul { margin: 4px 0; padding-left: 20px; }
.soft, figcaption { color: var(--soft); }
.small, figcaption { font-size: 13px; }
.gist { font-size: 17px; margin: 12px 0 0; }
.note { border-left: 3px solid var(--line); padding: 4px 0 4px 14px; margin: 14px 0; font-size: 14px; }
.note h3 { margin: 0; }
.note.bad { border-color: var(--bad); background: var(--bad-sheet); padding: 8px 14px; border-radius: 0 6px 6px 0; }
.bad { color: var(--bad); }
.note.bad li { color: var(--ink); }
.scroll { overflow-x: auto; margin: 0 -24px; padding: 0 24px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 18px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; border-color: var(--line); vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; padding-left: 0; font-weight: 500; position: sticky; left: 0;
  background: var(--sheet); }
tbody th.group { padding-top: 16px; white-space: normal; position: static; }
td.bad { text-align: left; }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 7px; border-radius: 2px;
  background: var(--host); }
.key.own { background: var(--own); border-radius: 50%; }
.key.other { background: var(--other); }
.key.idle { background: none; border: 1.5px solid var(--host); border-radius: 50%; }
.keys { font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 6px;
  min-height: 20px; }
.pair { white-space: nowrap; }
.drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 4px 48px; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
svg { display: block; overflow: visible; margin-bottom: 6px; }
svg text { font-size: 12px; fill: var(--ink); }
svg text.soft { fill: var(--soft); }
svg text.name { paint-order: stroke; stroke: var(--sheet); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--grid); }
.front { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 1 4; stroke-linecap: round; }
.median { stroke: var(--soft); }
.mark { stroke: var(--ink); stroke-width: 1.5; }
.interval { fill: var(--band); }
.dot { fill: var(--own); fill-opacity: .75; }
.ring { fill: none; stroke: var(--other); stroke-width: 1.5; }
svg .own { fill: var(--own); }
svg .other { fill: var(--other); }
svg .best { stroke: var(--ink); stroke-width: 1.5; }
.s-text_encoder { fill: var(--text); background: var(--text); }
.s-denoiser, .s-run { fill: var(--own); background: var(--own); }
.s-vae_decoder { fill: var(--decode); background: var(--decode); }
.s-host, .s-before { fill: var(--host); background: var(--host); }
.s-load { fill: var(--load); background: var(--load); }
div.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 18px 20px; }
.pair-of { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; margin-bottom: 4px; }
img { width: 100%; height: auto; display: block; border-radius: 4px; background: var(--grid); }
details { margin-top: 24px; }
details.note { margin-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
.note summary { font-weight: 500; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 13px; margin: 12px 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
.columns { columns: 260px; column-gap: 32px; }
pre { font-size: 12px; overflow-x: auto; background: var(--page); border-radius: 6px; padding: 10px 12px;
  margin: 6px 0; }
@media (max-width: 560px) {
  main { padding: 12px 10px 40px; }
  section { padding: 16px 14px 20px; }
  .scroll { margin: 0 -14px; padding: 0 14px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 6px; }
}
@media print { section { break-inside: avoid-page; border: 0; padding: 0; } }
"""
"""CSS. Colours are told apart by shape or place too: circles are profiles, squares baselines."""
