#!/usr/bin/env bash
# Makes every number of docs/results.md, which_method.md, whose_data.md and reproduction.md anew, in
# results/ (what is there already is kept), with one thread a run, two at a time: about twelve
# hours.
# (A line must not end in a blank: xargs would join the next one to it.)
# Usage: results/regenerate.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
export OMP_NUM_THREADS=1

# Training tasks held out instead of the test tasks: four disjoint sets of five
held_out() {    # family, name of the run
    case $1-${2##*_} in
        cheetah_vel-set1) echo 1,10,18,27,34 ;;
        cheetah_vel-set2) echo 3,11,19,28,35 ;;
        cheetah_vel-set3) echo 4,12,20,29,36 ;;
        cheetah_vel-set4) echo 5,13,21,30,37 ;;
        ant_dir-set1) echo 1,11,21,32,42 ;;
        ant_dir-set2) echo 2,12,22,33,43 ;;
        ant_dir-set3) echo 3,13,24,34,44 ;;
        ant_dir-set4) echo 4,14,25,35,45 ;;
        walker_params-set1) echo 1,11,22,31,41 ;;
        walker_params-set2) echo 3,13,23,32,42 ;;
        walker_params-set3) echo 4,14,24,33,44 ;;
        walker_params-set4) echo 5,16,25,34,45 ;;
    esac
}

# A data file in runs/, made by experiments.py or collect.py when it is needed
made() {        # name: first, middle, last, few5, uniform, ...
    [ -e runs/$1.npz ] && return
    mkdir -p runs
    case $1 in
        first | middle | last) "$python" experiments.py thirds --out runs/ ;;
        few*) "$python" experiments.py few --tasks ${1#few} --out runs/ ;;
        uniform) "$python" collect.py --env cheetah_vel --steps 6000 --random-steps 6000 \
            --keep 6000 --out runs/uniform.npz ;;
    esac >&2
}

# The file of a method, by the name of a variant or of a run
program() {
    case $1 in
        focal* | pearl*) echo focal.py ;;
        smac* | frozen* | no_data*) echo smac.py ;;
        *) echo macaw.py ;;
    esac
}

# The command of each run that is missing
run() {         # family, name of the run, seed
    local env=$1 name=$2 seed=$3 out=results/$1/$2-s$3 flags variant=${2%_*}
    local plain=                            # ordinary layers' settings of those runs
    case $variant in no_wt | maml_awr) plain="--inner-lr 0.001 --weight-decay 1" ;; esac
    [ -e $out/summary.json ] && return
    case $name in
        *_lives) flags="--data data/$env.npz --late 0 $plain" ;;
        *_aligned) flags="--data data/$env.npz" ;;
        smac_untuned) flags="--steps 3500" ;;
        *_untuned)
            flags="--late 0 --lr 0.001 --temperature 0.5 --encoder-steps 0 --sigma 0.2 --no-smooth"
            flags="$flags --no-monte-carlo" ;;
        *_short) flags="--steps 600" ;;
        *_two) flags="--adapt-data data/$env.npz,data/${env}_others.npz" ;;
        *_before) flags= ;;                 # those of the default before, see below
        *_uncut) flags="--max-gradient 0" ;;
        *_large) flags="--tasks-per-step 16" ;;
        *_independent) flags="--data data/${env}_others.npz --steps 1000" ;;
        *_set?) flags="--holdout $(held_out $env $name)" ;;
        *_few*)
            local tasks=${name##*_few} most=16          # a meta-batch of FOCAL and PEARL
            made few$tasks
            flags="--data runs/few$tasks.npz"
            case $variant in macaw) flags="$flags --steps 1000" most=5 ;; mt_awr) most=5 ;; esac
            flags="$flags --tasks-per-step $((tasks < most ? tasks : most))" ;;
        *_first | *_middle | *_last)        # what is kept is the judgement on that third, below
            made ${name##*_}
            out=runs/$name-s$seed flags="--data data/$env.npz --adapt-data runs/${name##*_}.npz"
            flags="$flags --late 0.67 --steps 1000" ;;
        *_random)                           # likewise
            made uniform
            out=runs/$name-s$seed flags="--data data/$env.npz --adapt-data runs/uniform.npz"
            flags="$flags --inner-batch 512 --test-batch 512 --advantage-coef 1.0 --steps 2000"
            flags="$flags --policy-lr 0.001 --value-lr 0.001"
            [ $variant = no_wt ] || flags="$flags --inner-lr 0.01" ;;
        *) variant=$name flags= ;;
    esac
    # Those runs on cheetah_vel have what was MACAW's default: no gradient cut, five tasks a meta-step,
    # ReLU, one sigma (their own flags, which come after, win)
    case $env-$(program $variant)-$name in
        *_set? | *_uncut | *-$variant) ;;
        cheetah_vel-macaw.py-*)
            flags="--tasks-per-step 5 --sigma 0.2 --no-smooth --max-gradient 0 $flags" ;;
    esac
    case $env-$name in
        cheetah_vel-macaw_aligned | cheetah_vel-*_lives) flags="$flags --steps 1000" ;;
        # Ordinary layers' inner steps there
        walker_params-no_wt) flags="--inner-lr 0.003 --inner-steps 1 --test-steps 1" ;;
        cheetah_dir-no_wt) flags="--inner-lr 0.01" ;;
        # Lenders do these no good
        ant_dir-no_wt) flags="--inner-lr 0.01 --data data/ant_dir.npz" ;;
        ant_dir-pearl_regularised) flags="--data data/ant_dir.npz" ;;
        walker_params-mt_awr* | ant_dir-mt_awr*)        # and a fine-tuning that harms them least
            flags="$flags --inner-lr 0.0001 --test-steps 5 --weight-decay 1" ;;
    esac
    [ -e $out/summary.json ] && return
    if [ -e $out/checkpoint.pt ]; then
        echo "$(program $variant) --resume --out $out"
    else
        echo "$(program $variant) --env $env --variant $variant --seed $seed $flags --out $out"
    fi
}
runs() {        # family, seeds, names
    for name in "${@:3}"; do
        for seed in $2; do run $1 $name $seed; done
    done
}
{
    for env in cheetah_vel walker_params ant_dir cheetah_dir; do
        seeds="0 1 2 3 4 5 6 7 8 9"
        runs $env "$seeds" macaw meta_bc mt_awr
        runs $env "0 1 2 3 4" focal focal_untuned pearl pearl_regularised no_wt
    done
    runs cheetah_vel "$seeds" no_advantage maml_awr
    runs cheetah_vel "5 6 7 8 9" no_wt
    runs cheetah_vel "0 1 2 3 4" smac frozen no_data {macaw,focal}_aligned \
        {macaw,meta_bc,mt_awr,no_advantage,no_wt,maml_awr}_independent
    runs cheetah_vel "0 1 2 3 4" smac_untuned
    runs cheetah_vel "0 1" {macaw,no_wt}_short
    runs cheetah_vel 0 no_wt_wide_short
    runs cheetah_vel "0 1 2 3 4" macaw_two {pearl,smac}_aligned
    runs cheetah_vel "0 1 2 3 4 5 6 7 8 9" macaw_{before,uncut}
    runs cheetah_vel "0 1 2 3 4" macaw_large
    runs cheetah_vel "0 1 2 3 4" {macaw,meta_bc,no_advantage,no_wt,maml_awr}_lives
    runs cheetah_vel "0 1 2 3 4" {macaw,no_advantage}_{first,middle,last}
    runs cheetah_vel "0 1 2 3" {macaw,no_advantage,no_wt}_random     # MACAW's seed 4 diverges
    runs cheetah_vel "0 1 2 3 4" {macaw,mt_awr,focal,pearl}_few{3,5,10,20} mt_awr_aligned
    runs walker_params "0 1 2 3 4" smac
    runs ant_dir "0 1 2 3 4" {macaw,meta_bc}_lives
    runs ant_dir "0 1 2 3 4" {macaw,focal}_aligned
    for env in cheetah_vel ant_dir walker_params; do
        runs $env 0 {macaw,meta_bc,mt_awr}_set{1,2,3,4}
    done
} | xargs -P 2 -L 1 "$python"

# Some of them adapted to other groups of agents, while their checkpoints are there
for env in cheetah_vel walker_params ant_dir; do
    for name in {macaw,focal,smac}{,_aligned} macaw_{two,before,large,uncut} \
            {macaw,mt_awr}_independent meta_bc mt_awr no_advantage no_wt; do
        seeds=[0-4]
        case $env-$name in
            cheetah_vel-macaw | cheetah_vel-no_advantage) seeds=[0-9] ;;
            walker_params-meta_bc | walker_params-mt_awr | *_params-no_wt | cheetah_vel-no_wt)
                continue ;;
        esac
        for run in results/$env/$name-s$seeds; do
            [ -e $run/checkpoint.pt ] || continue
            case $env-$name in cheetah_vel-macaw | cheetah_vel-focal)
                for size in 8 16 64; do
                    [ -e $run/batch$size/summary.json ] || echo "$(program $name) --evaluate" \
                        "$run/checkpoint.pt --test-batch $size --out $run/batch$size"
                done ;;
            esac
            for group in aligned others strangers; do
                [ $env-$group != ant_dir-others ] || continue           # they lived no test tasks
                [ -e $run/$group/summary.json ] && continue
                file=data/${env}_$group.npz
                [ $group = aligned ] && file=data/$env.npz
                [ -e $file ] || continue
                echo "$(program $name) --evaluate $run/checkpoint.pt --data $file --out $run/$group"
            done
        done
    done
done | xargs -P 2 -L 1 "$python"

# Adapted to a third of lives each, or to uniform actions (Figures 4 and 5)
for file in first middle last random; do
    for run in runs/*_$file-s?; do
        [ -e $run/checkpoint.pt ] || continue
        out=results/cheetah_vel/${run#runs/} data=runs/${file/random/uniform}.npz
        [ -e $out/summary.json ] || \
            echo "macaw.py --evaluate $run/checkpoint.pt --data $data --out $out"
    done
done | xargs -r -P 2 -L 1 "$python"

# Online fine-tuning (Table 1), while the checkpoints are there; walkers' was of nets with
# --inner-steps 1 --test-steps 1 --sigma 0.2 --no-smooth --weight-decay 1
for env in cheetah_vel walker_params ant_dir; do
    for seed in 0 1 2 3 4; do
        for name in macaw pearl; do
            checkpoint=results/$env/$name-s$seed/checkpoint.pt out=results/$env/online-s$seed
            flags=
            [ $name = macaw ] || out=results/$env/online_pearl-s$seed flags="--method focal"
            [ ! -e $checkpoint ] || [ -e $out/summary.json ] || \
                echo "experiments.py online --checkpoint $checkpoint $flags --out $out"
        done
    done
done | xargs -r -P 2 -L 1 "$python"

for run in results/*/*-s?; do rm -f "$run"/checkpoint.pt "$run"/curve.png; done
"$python" -m helpers.evidence results results --out results/results.png
"$python" -m helpers.evidence whose results/cheetah_vel --out results/whose_data.png
"$python" -m helpers.evidence poses results/cheetah_vel --out results/poses.png
"$python" -m helpers.evidence context results/cheetah_vel --out results/context.png
"$python" -m helpers.evidence online results --out results/online.png
"$python" -m helpers.evidence early results --out results/early.png
"$python" -m helpers.evidence scores results --out results/scores.png
"$python" -m helpers.evidence rotation results --out results/rotation.png
"$python" -m helpers.evidence few results/cheetah_vel --out results/few.png
"$python" -m helpers.evidence own results --out results/own.png
"$python" -m helpers.plot tasks results/cheetah_vel/macaw-s? --out results/cheetah_vel/tasks.png
"$python" -m helpers.plot curve results/cheetah_vel/macaw-s? --out results/cheetah_vel/curve.png
OMP_NUM_THREADS=2 "$python" bench.py --json results/bench.json --figure results/growth.png
