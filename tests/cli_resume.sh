#!/bin/sh
# A run that is killed twice and stopped once by Ctrl-C must end with the bits of one that was not:
#     sh tests/cli_resume.sh [TOOL] [FOLDER]           (default build/xguide, build/resume)
# Checks the checkpoint byte by byte, the log without its last column (seconds), and result.json.
# The run is guided, so that both orders of pictures, the generators and the sums of the log's
# unfinished row matter. The number of threads must not matter.
tool=${1:-build/xguide}
out=${2:-build/resume}
options="--data decoy --count 480 --epochs 3 --batch 16 --lr 0.004 --loss energy --lambda 1 --mean
         --annotated 0.5 --extra 4 --flip --schedule cosine --warmup 5 --save-every 7 --log-every 4
         --seed 5 --quiet"
failed=0

fail() { echo "FAILED: $*"; failed=1; }

# start FOLDER MORE...: begins or goes on, in the background.
start() {
    folder=$1
    shift
    # shellcheck disable=SC2086
    "$tool" train $options --out "$folder" "$@" >"$out/said.txt" 2>&1 &
    running=$!
}

# wait_for ROWS: until the log of run B has so many lines, or the run ended.
wait_for() {
    while kill -0 "$running" 2>/dev/null; do
        rows=$(wc -l 2>/dev/null <"$out/b/log.csv" || echo 0)
        [ "$rows" -ge "$1" ] && return 0
        sleep 0.02
    done
    fail "the run ended before it could be interrupted"
}

rm -rf "$out"
mkdir -p "$out"
start "$out/a"
wait "$running" || fail "the uninterrupted run: $(cat "$out/said.txt")"

start "$out/b" --threads 1
wait_for 5
kill -9 "$running" && wait "$running" 2>/dev/null
start "$out/b" --threads 2
wait_for 11
kill -INT "$running"
wait "$running" && fail "a run that was stopped returned 0"
grep -q "the same command goes on" "$out/said.txt" || fail "no word on how to go on"
start "$out/b"
wait_for 18
kill -9 "$running" && wait "$running" 2>/dev/null
start "$out/b" --log-every 4
wait "$running" || fail "the resumed run: $(cat "$out/said.txt")"

for file in a b; do
    cut -d, -f1-12 "$out/$file/log.csv" >"$out/$file.csv"
    sed '1,1d' "$out/$file/result.json" >"$out/$file.json"
done
cmp "$out/a/checkpoint.safetensors" "$out/b/checkpoint.safetensors" || fail "checkpoints differ"
cmp "$out/a.csv" "$out/b.csv" || fail "logs differ"
cmp "$out/a.json" "$out/b.json" || fail "results differ"

# Another rate is another run: it must be refused, and nothing must change.
start "$out/b" --lr 0.005
wait "$running" && fail "a run with other options was continued"
cmp "$out/a/checkpoint.safetensors" "$out/b/checkpoint.safetensors" || fail "a refusal wrote"
start "$out/b" --lr 0.005 --fresh --limit 8
wait "$running" || fail "--fresh did not begin anew"

[ $failed = 0 ] && echo "resume: all bits equal"
exit $failed
