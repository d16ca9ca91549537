# shellcheck shell=bash
# Sourced by the job scripts of this folder: a notice before the time limit becomes a stop, a
# checkpoint and a requeue; nothing waits for ever.
#
# Slurm sends USR1 to the script (#SBATCH --signal=B:USR1@SECONDS) some time before the limit, and
# where the site sets PreemptParameters=send_user_signal, also before it preempts the job. A lost
# node needs nothing here: Slurm itself requeues a job with --requeue.

export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Since Slurm 22.05, srun does not take this from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

is_noticed=
notice() {
  [ -z "$is_noticed" ] || return 0
  is_noticed=1
  echo "$(date +%T) notice: the job stops, saves and is queued again"
  stop
}
trap notice USR1
# scancel and preemption send TERM to the steps too; wait for what they still save.
trap : TERM

# First host of the job, and a port that other jobs on it do not use; the nodes need both.
export first_host port
first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# Seconds till the time limit: how long a step may wait for nodes that do not answer.
seconds_left() {
  local end
  end=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  case $end in
    20*) echo $(($(date -d "$end" +%s) - $(date +%s))) ;;
    *) echo 31536000 ;; # no limit
  esac
}

# Leave before the work begins, if the notice came that early.
leave_if_noticed() { [ -z "$is_noticed" ] || leave 1; }

# Wait for a process of this script, however often a signal interrupts; return its exit code.
wait_for() {
  local code
  while true; do
    code=0
    wait "$1" || code=$?
    kill -0 "$1" 2> /dev/null || break
  done
  # A signal may have come just as the process ended; bash remembers how it ended.
  code=0
  wait "$1" || code=$?
  return "$code"
}

# Leave with an exit code, or give the job back to the queue if it was told to stop.
leave() {
  if [ -n "$is_noticed" ] && [ "$1" -ne 0 ]; then
    echo "$(date +%T) queued again; the same command continues"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # Slurm ends this script
  fi
  exit "$1"
}
