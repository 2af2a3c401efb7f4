"""The manifests and the scripts around them; `make k8s` runs these, as they need kubectl, shellcheck and the CRDs."""
