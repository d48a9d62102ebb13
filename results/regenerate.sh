#!/usr/bin/env bash
# Makes every number of the README anew, in results/ (what is there already is kept), with one
# thread a run, two at a time: several hours on two cores. Usage: results/regenerate.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
export OMP_NUM_THREADS=1
one_step="--inner-steps 1 --test-steps 1 --steps 4000"

for env in cheetah_dir cheetah_vel ant_dir walker_params; do
    variants="macaw meta_bc mt_awr"
    [ $env = cheetah_vel ] && variants="$variants no_advantage no_wt no_wt_wide maml_awr
        macaw_one meta_bc_one no_advantage_one no_wt_one maml_awr_one macaw_late meta_bc_late"
    [ $env = ant_dir ] && variants="$variants macaw_whole meta_bc_whole"
    for variant in $variants; do
        for seed in 0 1 2; do
            if [ ! -e results/$env/$variant-s$seed ]; then
                case $variant in
                    *_one) method=${variant%_one} flags=$one_step ;;
                    *_late) method=${variant%_late} flags="$one_step --late 0.8" ;;
                    *_whole) method=${variant%_whole} flags="--late 0" ;;
                    *) method=$variant flags= ;;
                esac
                echo "macaw.py --env $env --variant $method --seed $seed $flags" \
                     "--out results/$env/$variant-s$seed"
            fi
        done
    done
done | xargs -P 2 -L 1 "$python"

for folder in results/*/*-s?; do rm -f "$folder"/checkpoint.pt "$folder"/curve.png; done
"$python" plot.py results results --out results/results.png
"$python" plot.py curve results/cheetah_vel/macaw-s? --out results/cheetah_vel/curve.png
OMP_NUM_THREADS=2 "$python" bench.py --json results/bench.json --figure results/growth.png
