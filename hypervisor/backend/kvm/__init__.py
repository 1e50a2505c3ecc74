"""Virtual processors of KVM: ioctls, vCPU threads, exits. Hypervisor."""
