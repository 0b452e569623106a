# File system tests in the shared folder at /mnt: POSIX's rules call by call, and random operations on one file.
mkdir /mnt/posix /tmp/second
pjdfstest -c /etc/pjdfstest.toml -p /mnt/posix -s /tmp/second >/tmp/out 2>&1 || { echo "@fail pjdfstest $?"; grep -a FAILED /tmp/out; }
sed -n 's/^Summary: /@posix /p' /tmp/out
fsx -N 3000 -S 7 -P /tmp /mnt/file >/tmp/out 2>&1 && echo "@ok fsx" || { echo "@fail fsx $?"; tail -n 30 /tmp/out; }
