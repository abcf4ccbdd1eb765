# Removes what no process of the images loads: Arrow's Flight and S3 clients, its headers and tests, and botocore's
# descriptions of every service but object storage and those that hand out its credentials.
set -eu
packages=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cd "$packages"
if [ -d pyarrow ]; then
  rm -rf pyarrow/libarrow_flight.so.* pyarrow/_flight.*.so pyarrow/libarrow_s3.so.* pyarrow/_s3fs.*.so pyarrow/include pyarrow/tests
fi
if [ -d botocore/data ]; then
  find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
fi
