#!/bin/sh
# Waterbirds-100, plain against guided: the table of the README.
#
#     sh tools/waterbirds.sh [OUTPUT FOLDER]          (default build/waterbirds)
#
# Trains 3 seeds x {plain, Energy with 1 % of the boxes, Energy with 10 %} and prints a Markdown table:
# mean +- standard deviation over the seeds, on the test split. About twenty minutes on two cores; a run
# that was broken off goes on where it stopped when the script is started again.
#
# What is trained: ResNet-18 with ImageNet weights, cut after layer3 (the stored weights end there),
# batch norm folded into the convolutions; pictures of 128x128. The stem and layer1 stay as they are;
# layer2, layer3 and a new classifier learn, with Adam at 3e-4, for one epoch of batches of 32, on
# cross-entropy that weighs both classes alike. Guidance: Energy loss on input-times-gradient at the
# input, of the label's logit less the other's, on what speaks for the label and on what speaks
# against it (--against), for 8 annotated pictures that are added to every batch (they do not count
# for the label loss), lambda 3 on their mean. Layer and lambda were chosen on the validation split.
#
# Variables: XG_DATA (folder of the data sets), XGUIDE (the tool), SEEDS, EPOCHS, THREADS, and ARGS for
# further options of `xguide train`.
out=${1:-build/waterbirds}
data=${XG_DATA:-../shared/data}
tool=${XGUIDE:-build/xguide}
seeds=${SEEDS:-1 2 3}
epochs=${EPOCHS:-1}
threads=${THREADS:-2}
weights=$data/weights/resnet18_imagenet1k_v1_bnfolded_partial.safetensors

for need in "$tool" "$data/waterbirds100/metadata.csv" "$weights"; do
    if [ ! -e "$need" ]; then
        echo "waterbirds.sh: $need is missing; set XGUIDE and XG_DATA, see the head of this script" >&2
        exit 2
    fi
done

# run NAME SEED OPTIONS...: one training; its folder is $out/NAME-SEED.
run() {
    name=$1 seed=$2
    shift 2
    echo "--- $name, seed $seed" >&2
    # shellcheck disable=SC2086
    "$tool" train --data "$data/waterbirds100" --net resnet18 --stages 3 --folded \
        --weights "$weights" --train-from layer2 --epochs "$epochs" --batch 32 --lr 0.0003 --balance \
        --layer input --seed "$seed" --threads "$threads" --val-limit 300 --quiet \
        --out "$out/$name-$seed" "$@" $ARGS >&2 || exit 1
}

for seed in $seeds; do
    run plain "$seed" --loss none
    run energy1 "$seed" --loss energy --lambda 3 --against --mean --extra 8 --annotated 0.01
    run energy10 "$seed" --loss energy --lambda 3 --against --mean --extra 8 --annotated 0.1
done

# row TITLE NAME: a line of the table from the result.json of every seed. The numbers of the test are
# on the line after "test".
row() {
    title=$1 name=$2
    for seed in $seeds; do
        sed -n '/"test"/{n;s/"[a-z_]*": //g;s/,/ /g;p;}' "$out/$name-$seed/result.json"
    done | awk -v title="$title" '
        { n++; for (i = 1; i <= 3; i++) { sum[i] += 100 * $i; squares[i] += 10000 * $i * $i } }
        END {
            printf "| %s |", title
            for (i = 1; i <= 3; i++) {
                mean = sum[i] / n
                spread = n > 1 ? (squares[i] - n * mean * mean) / (n - 1) : 0
                printf " %.1f +- %.1f |", mean, sqrt(spread > 0 ? spread : 0)
            }
            print ""
        }'
}

echo "| training | overall, % | worst group, % | EPG at the input, % |"
echo "|---|---|---|---|"
row "plain" plain
row "Energy, 1 % of the boxes (47)" energy1
row "Energy, 10 % of the boxes (479)" energy10
