"""Style sheet of the HTML report: light or dark, as the reader's system prefers."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --quiet: #5a6675; --page: #fbfbfa;
  --card: #ffffff; --line: #dfe3e8; --good: #18794e; --bad: #c4320a;
  --series-0: #2456c8; --series-1: #c2540a; --series-2: #18794e; --series-3: #8b3fb8;
  --series-4: #a01048; --series-5: #57606a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --quiet: #9aa6b4;
  --page: #14181d; --card: #1b2027; --line: #333b45; --good: #5bc78f; --bad: #ff8f6b;
  --series-0: #82aaff; --series-1: #ffa65c; --series-2: #5bc78f; --series-3: #d19aff;
  --series-4: #ff7aa8; --series-5: #aab4bf; } }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; font-size: 1.2rem; } h3 { font-size: 1rem; }
p, small, figcaption { color: var(--quiet); }
.legend { list-style: none; padding: 0; } .legend li { margin: .3rem 0; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px;
  margin-right: .4rem; }
.s0 { background: var(--series-0); } .s1 { background: var(--series-1); }
.s2 { background: var(--series-2); } .s3 { background: var(--series-3); }
.s4 { background: var(--series-4); } .s5 { background: var(--series-5); }
.good { color: var(--good); } .bad { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem; } figcaption { text-align: center; font-size: .85rem; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); stroke-width: 1; }
.bound { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 1rem; } .run { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .4rem 1rem .8rem; min-width: 0; } .run h2 { margin-top: .6rem; }
.verdict { font-size: 1.05rem; padding-left: 1.1rem; }
.tick, .axis, .mark { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.mark { fill: var(--text); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right;
  white-space: nowrap; } th:first-child, td:first-child, .facts td { text-align: left; }
.facts th { font-weight: normal; color: var(--quiet); } .facts td { white-space: normal;
  overflow-wrap: anywhere; }
details figure { max-width: 46rem; } summary { cursor: pointer; margin: .5rem 0; }
"""
