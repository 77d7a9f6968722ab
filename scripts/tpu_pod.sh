#!/usr/bin/env bash
# Runs one `cogvx` command on every host of a TPU slice: they join into one run (--distributed). The first host
# writes the video, which is then copied here; encoded clips and runs stay in the bucket, or on the disk that the hosts share.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: scripts/tpu_pod.sh --tpu NAME --zone ZONE [--project ID] [--install SPEC] [--dry-run] -- cogvx generate|encode|train ...

  --tpu NAME        the TPU VM, as `gcloud compute tpus tpu-vm list` names it
  --zone ZONE       where it is
  --project ID      gcloud's own project if not given
  --install SPEC    first install this package, jax[tpu] and gcsfs on every host, with a Python of their own;
                    SPEC is what uv takes, such as git+https://... or the URL of a wheel
  --dry-run         print the commands and run nothing
TEXT
}

fail() {
  echo "tpu_pod.sh: $1" >&2
  usage
  exit 2
}

tpu='' zone='' project='' install='' dry_run=false
while (($#)); do
  case $1 in
    --tpu | --zone | --project | --install)
      (($# > 1)) && [[ $2 != -* ]] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --dry-run)
      dry_run=true
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option $1; the cogvx command follows --" ;;
  esac
done

[[ -n $tpu ]] || fail "--tpu is missing"
[[ -n $zone ]] || fail "--zone is missing"
(($# > 1)) && [[ $1 == cogvx ]] || fail "after -- comes the command to run, such as cogvx generate 'a red circle' --mesh sp=8"
verb=$2
[[ $verb =~ ^(generate|encode|train)$ ]] || fail "only cogvx generate, encode and train run on several hosts, got $verb"

command=("$@")
out='' spread=false
[[ $verb != generate ]] || out=out.mp4
for ((i = 2; i < $#; i++)); do
  case ${command[i]} in
    --distributed) fail "leave --distributed out: it is added here" ;;
    --mesh | --mesh=*) spread=true ;;
    --prompts-file | --prompts-file=*) fail "give one prompt: the files of --prompts-file would stay on the first host" ;;
    --out) out=${command[i + 1]:-} ;;
    --out=*) out=${command[i]#--out=} ;;
  esac
done
[[ -n $out ]] || fail "--out needs a value"
if [[ $verb != generate ]]; then
  [[ $out == /* || $out == gs://* ]] ||
    fail "--out must be a bucket such as gs://bucket/run, or a folder on a disk that all hosts share, got $out"
fi
$spread || [[ $verb == encode ]] || fail "--mesh is missing: without it, every host would compute the same on one chip"
command+=(--distributed)

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" --worker=all --command="$1"
}

# What is quoted here is unquoted by the hosts' shells.
if [[ -n $install ]]; then
  # The hosts' own Python may be older than 3.11.
  tool="uv tool install --force --python 3.12 --with 'jax[tpu]' --with gcsfs $(printf '%q' "$install")"
  everywhere "python3 -m pip install --user --quiet uv && \$HOME/.local/bin/$tool"
fi
quoted=$(printf '%q ' "${command[@]}")
everywhere "export PATH=\$HOME/.local/bin:\$PATH; ${quoted% }"
[[ $verb == generate ]] || exit 0
# Process 0 of a slice is worker 0.
run gcloud compute tpus tpu-vm scp "$tpu:$out" "$out" "${where[@]}" --worker=0
