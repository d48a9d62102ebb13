#!/usr/bin/env bash
# Makes every number of docs/results.md anew, in results/ (what is there already is kept), with one
# thread a run, two at a time: about three hours on two cores, most of them for the runs of the
# earlier schedule (`*_one`, `*_late`, `*_whole`). Usage: results/regenerate.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
export OMP_NUM_THREADS=1
earlier="--width 100 --inner-batch 256 --policy-lr 0.001 --value-lr 0.001 --steps 4000"
one_step="$earlier --inner-steps 1 --test-steps 1"

for env in cheetah_dir cheetah_vel ant_dir walker_params; do
    variants="macaw meta_bc mt_awr focal pearl"
    [ $env = cheetah_vel ] || [ $env = walker_params ] && variants="$variants smac"
    [ $env = cheetah_vel ] && variants="$variants no_advantage no_wt maml_awr
        macaw_one meta_bc_one no_advantage_one no_wt_one maml_awr_one macaw_late meta_bc_late"
    [ $env = ant_dir ] && variants="$variants macaw_whole meta_bc_whole"
    for variant in $variants; do
        for seed in 0 1 2; do
            if [ ! -e results/$env/$variant-s$seed/summary.json ]; then
                case $variant in
                    *_one) method=${variant%_one} flags=$one_step ;;
                    *_late) method=${variant%_late} flags="$one_step --late 0.8" ;;
                    *_whole) method=${variant%_whole} flags="$earlier --late 0" ;;
                    *) method=$variant flags= ;;
                esac
                case $variant in
                    focal | pearl) program=focal.py ;;
                    smac) program=smac.py ;;
                    *) program=macaw.py ;;
                esac
                out=results/$env/$variant-s$seed
                if [ -e $out/checkpoint.pt ]; then
                    echo "$program --resume --out $out"
                else
                    echo "$program --env $env --variant $method --seed $seed $flags --out $out"
                fi
            fi
        done
    done
done | xargs -P 2 -L 1 "$python"

for folder in results/*/*-s?; do rm -f "$folder"/checkpoint.pt "$folder"/curve.png; done
"$python" -m helpers.plot results results --out results/results.png
"$python" -m helpers.plot curve results/cheetah_vel/macaw-s? --out results/cheetah_vel/curve.png
OMP_NUM_THREADS=2 "$python" bench.py --json results/bench.json --figure results/growth.png
