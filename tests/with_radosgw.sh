#!/usr/bin/env bash
# Run a command with ATLAS_TEST_S3 pointing at a one-node Ceph object gateway on this machine, then stop it.
# Usage (as root): tests/with_radosgw.sh COMMAND [ARGUMENT ...]
# Needs Debian's ceph-mon ceph-osd ceph-mgr radosgw ceph-common; about 1 GB of memory, ready in about 20 s.
set -euo pipefail

port=${RADOSGW_PORT:-9105}
home=$(mktemp -d)
conf=$home/ceph.conf
export AWS_ACCESS_KEY_ID=atlastest AWS_SECRET_ACCESS_KEY=atlassecret AWS_DEFAULT_REGION=us-east-1

stop() {
  # Each daemon wrote its process id beside its data.
  for pid in "$home"/run/*.pid; do [ -f "$pid" ] && kill -9 "$(cat "$pid")" 2>/dev/null; done
  rm -rf "$home"
}
trap stop EXIT

mkdir -p "$home"/{mon,mgr,osd,run,log,rgw}
cat > "$conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = v1:127.0.0.1:$((port + 1))
public network = 127.0.0.0/8
ms bind ipv4 = true
ms bind msgr2 = false
# One private node for the length of a test: the daemons need not prove themselves to each other.
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
run dir = $home/run
log file = $home/log/\$name.log
admin socket = $home/run/\$name.\$pid.asok
pid file = $home/run/\$name.pid
crash dir = $home/run
mon data = $home/mon
mgr data = $home/mgr
mgr modules =
mgr initial modules =
osd data = $home/osd
osd objectstore = bluestore
bluestore block size = 21474836480
bluestore block create = true
osd memory target = 1073741824
rgw data = $home/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dns name = localhost
CONF

{
  fsid=$(awk '/^fsid/ {print $3}' "$conf")
  monmaptool --create --clobber --fsid "$fsid" --addv a "[v1:127.0.0.1:$((port + 1))]" "$home/monmap"
  ceph-mon -c "$conf" --mkfs -i a --monmap "$home/monmap"
  ceph-mon -c "$conf" -i a
  ceph-mgr -c "$conf" -i x
  timeout 60 ceph -c "$conf" -s
  osd=$(cat /proc/sys/kernel/random/uuid)
  ceph -c "$conf" osd new "$osd"
  ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$osd"
  ceph -c "$conf" osd crush add osd.0 1.0 root=default host=h0 || true
  # Its first command may leave before it has learnt the cluster's id; then it is refused, and ends.
  for _ in 1 2 3; do
    ceph-osd -c "$conf" -i 0
    for _ in $(seq 20); do
      if timeout 20 ceph -c "$conf" osd stat | grep -q "1 up"; then break 2; fi
      kill -0 "$(cat "$home/run/osd.0.pid")" 2>/dev/null || break
    done
  done
  radosgw -c "$conf" -n client.rgw.a
  timeout 120 radosgw-admin -c "$conf" -n client.rgw.a user create --uid atlas --display-name atlas \
    --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY"
} > "$home/log/start.log" 2>&1 || { cat "$home/log/start.log" >&2; exit 1; }

for _ in $(seq 60); do
  if curl --silent --output /dev/null "http://127.0.0.1:$port"; then
    export ATLAS_TEST_S3=http://127.0.0.1:$port
    "$@"
    exit
  fi
  sleep 1
done
echo "radosgw did not answer on port $port" >&2
exit 1
