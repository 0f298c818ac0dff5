#!/usr/bin/env bash
# A SLURM of one machine, for tests and for trying things out: munged, slurmctld and slurmd with their own
# configuration, ports and folders, so that they do not disturb any other SLURM.
#
#   eval "$(launch/slurm/one_machine.sh up DIR)"    start it and point this shell at it
#   eval "$(launch/slurm/one_machine.sh env DIR)"   point another shell at it
#   launch/slurm/one_machine.sh down DIR            cancel its jobs and end its daemons
#
# Needs root and, on Debian or Ubuntu:
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

fail() { echo "one_machine.sh: $1" >&2; exit "${2:-1}"; }

usage="usage: one_machine.sh up|down|env DIR"
[ $# -eq 2 ] || fail "$usage" 2
verb=$1
[ "$verb" = up ] && mkdir -p "$2"
[ -d "$2" ] || fail "there is no folder $2; one_machine.sh up $2 creates it" 2
dir=$(cd "$2" && pwd)
conf=$dir/slurm.conf

check() {
  [ "$(id -u)" = 0 ] || fail "starting slurmd needs root; run it as root" 2
  local missing=()
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" > /dev/null || missing+=("$program")
  done
  [ ${#missing[@]} -eq 0 ] || fail "missing: ${missing[*]}; on Debian: apt-get install --no-install-recommends\
 slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins" 2
}

running() { # whether the process whose id is in the file $1 is alive and executes the program $2
  [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2> /dev/null)" = "$2" ]
}

free_port() {
  local port
  while port=$((RANDOM % 20000 + 20000)); do
    (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
  done
  echo "$port"
}

configure() {
  local host memory
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  mkdir -p "$dir"/{state,spool,log}
  cat > "$conf" << END
ClusterName=one_machine
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
# A requeued job may start again once its credential has expired, which takes two minutes by default.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
# Small, so that a sweep of a few runs already needs several arrays.
MaxArraySize=2
# For how many seconds squeue shows a job that has ended; there is no accounting.
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

up() {
  check
  if running "$dir/slurmctld.pid" slurmctld; then
    environment
    return
  fi
  configure
  [ -s "$dir/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
  # --force accepts parent folders of any owner and mode, such as /tmp.
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munged.seed" > "$dir/log/start.log" 2>&1 < /dev/null ||
    fail "munged did not start: $(tail -n 1 "$dir/log/start.log")"
  export SLURM_CONF=$conf
  slurmctld -f "$conf" >> "$dir/log/start.log" 2>&1 < /dev/null ||
    fail "slurmctld did not start: $(tail -n 1 "$dir/log/start.log")"
  slurmd -f "$conf" >> "$dir/log/start.log" 2>&1 < /dev/null ||
    fail "slurmd did not start: $(tail -n 1 "$dir/log/start.log")"
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ] && environment && return
    sleep 0.2
  done
  fail "the node is not idle after 20 seconds; $dir/log says why"
}

down() {
  export SLURM_CONF=$conf
  if running "$dir/slurmctld.pid" slurmctld; then
    scancel --user="$(id -un)" 2> /dev/null || true
    for _ in $(seq 50); do
      [ -z "$(squeue --noheader 2> /dev/null)" ] && break
      sleep 0.2
    done
  fi
  local processes=() process
  for daemon in slurmd slurmctld munged; do
    if running "$dir/$daemon.pid" "$daemon"; then
      process=$(cat "$dir/$daemon.pid")
      kill "$process"
      processes+=("$process")
    fi
  done
  for process in "${processes[@]}"; do
    for _ in $(seq 10); do
      [ -d "/proc/$process" ] || continue 2
      sleep 0.1
    done
    kill -KILL "$process" 2> /dev/null || true
  done
  # The slurmstepd processes that jobs left behind; their environment names this configuration.
  for process in /proc/[0-9]*; do
    if [ "$(cat "$process/comm" 2> /dev/null)" = slurmstepd ] &&
      { tr '\0' '\n' < "$process/environ" | grep -qxF "SLURM_CONF=$conf"; } 2> /dev/null; then
      kill -KILL "${process#/proc/}" 2> /dev/null || true
    fi
  done
}

environment() { printf 'export SLURM_CONF=%q\n' "$conf"; }

case $verb in
  up) up ;;
  down) down ;;
  env) environment ;;
  *) fail "$usage" 2 ;;
esac
