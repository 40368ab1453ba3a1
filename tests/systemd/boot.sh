# Becomes the first process of a machine of its own: this one's files beneath a layer in memory,
# and nothing of its processes, network, devices or units. To be run in new namespaces.
# Arguments: pairs of a directory here and where it is to be seen there.
set -eu

mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work overlay /mnt/root
while [ $# -gt 0 ]; do
  mkdir -p "/mnt/root$2"
  mount --bind "$1" "/mnt/root$2"
  shift 2
done
cd /mnt/root

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 cgroups sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs tmp tmp
mount -t tmpfs -o mode=700 root root

: >etc/fstab
find etc/systemd/system/*.wants usr/lib/systemd/system/*.wants \
  -type l ! -name systemd-journald.service -delete
ln -sf /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\n' >etc/systemd/journald.conf.d/machine.conf

mkdir run/outside
pivot_root . run/outside
cd /
umount -l /run/outside
rmdir /run/outside
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd
