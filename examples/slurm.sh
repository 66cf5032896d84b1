#!/bin/bash
# Two machines with four GPUs each: sbatch examples/slurm.sh. A job that is preempted resumes by itself.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue

srun locdistill train gfl_r50_1x --data data/coco --out runs/gfl_r50_1x

# The same with torchrun, started on each machine with its own number as --node-rank:
# torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 --master-addr HOST --master-port 29500 \
#   -m locdistill train gfl_r50_1x --data data/coco --out runs/gfl_r50_1x
