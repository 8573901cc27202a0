#!/bin/sh
# The benchmark's table of one small network: a seconds-long run writes what it promises.
#     sh tests/bench.sh build
set -e
csv=$1/log/bench.csv
mkdir -p "$1/log"
"$1/bench" --quick --csv "$csv" mlp
"$1/bench" --quick --twins --one mlp.train 4 2
awk -F, 'function bad(why) { print FILENAME ":" NR ": " why ": " $0; failed = 1 }
    NR == 1 { if ($0 != "work,batch,threads,ms,gflops,peak_share,rss_mb") bad("the header"); next }
    NF != 7 { bad("not seven columns") }
    { for (i = 2; i <= 7; i++) if ($i !~ /^[0-9.]+$/) bad("not a number") }
    $4 <= 0 || $5 <= 0 { bad("no time") }
    $1 == "mlp.train" { trained++ }
    END { if (trained < 2) bad("no row for mlp.train"); exit failed }' "$csv"
# A name that does not exist is an error that says so.
if "$1/bench" --one nothing 1 1 2>"$1/log/bench.err"; then exit 1; fi
grep -q 'no workload is called nothing' "$1/log/bench.err"
# Any number of threads; rows that were measured stay when Ctrl-C ends the run.
"$1/bench" --quick --threads 3 --csv "$csv" mlp.train
awk -F, 'NR > 1 && $3 == 3 { rows++ } END { exit rows < 2 }' "$csv"
rm "$csv"
"$1/bench" --quick --csv "$csv" mlp 2>"$1/log/bench.err" &
until [ "$(wc -l 2>/dev/null <"$csv" || echo 0)" -gt 2 ]; do sleep 0.1; done
kill -INT $!
if wait $!; then exit 1; fi
grep -q 'stopped; the table has what was measured' "$1/log/bench.err"
# Nothing to measure, and what is no option, are errors that say so.
if "$1/bench" --csv "$csv" nothing 2>"$1/log/bench.err"; then exit 1; fi
grep -q 'leaves it out: nothing' "$1/log/bench.err"
if "$1/bench" --threads two 2>"$1/log/bench.err"; then exit 1; fi
grep -q "takes a whole number, not 'two'" "$1/log/bench.err"
# The comparison with other libraries: a row that is measured anew and differs does not stay as it was.
command -v python3 >/dev/null 2>&1 || exit 0
if python3 tools/peers.py --build "$1" nothing 2>"$1/log/bench.err"; then exit 1; fi
grep -q 'nothing to measure' "$1/log/bench.err"
PYTHONDONTWRITEBYTECODE=1 python3 - "$1/log/peers.csv" <<'EOF'
import pathlib
import sys
sys.path.insert(0, "tools")
import peers
table = peers.Table(pathlib.Path(sys.argv[1]), ["a", "b"], False)
for work in ("b", "a"):
    table.add(work, 1, 1, 2.0, "peer", "1.0", 3.0)
table.add("b", 1, 1, 2.0, "peer", "1.0", 3.0, counts=False)
assert [row[0] for row in table.rows] == ["a"], table.rows
EOF
