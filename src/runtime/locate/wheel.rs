//! The pinned wheels: which file is fetched for which machine.

use super::{Flavour, LocateError};

use std::env::consts::{ARCH, OS};

/// The version that [`install`](super::install()) fetches for [`Flavour::Cpu`].
pub const PINNED_VERSION: &str = "1.32.0";
/// The version that [`install`](super::install()) fetches for [`Flavour::Cuda`], whose wheels come out later.
pub const PINNED_CUDA_VERSION: &str = "1.31.1";

/// The Python whose wheels are taken; the library in them does not depend on it.
pub(super) const WHEEL_PYTHON: &str = "3.11";
pub(super) const WHEEL_ABI: &str = "cp311";

/// A pinned wheel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wheel {
    pub(super) flavour: Flavour,
    pub(super) os: &'static str,
    pub(super) arch: &'static str,
    /// The platform tag in its name.
    pub(super) platform: &'static str,
    pub(super) sha256: &'static str,
    pub(super) bytes: u64,
}

/// One wheel a flavour and platform. There is none for macOS on x86_64, nor for musl.
#[rustfmt::skip]
const WHEELS: &[Wheel] = &[
    Wheel { flavour: Flavour::Cpu, os: "linux", arch: "x86_64", platform: "manylinux_2_28_x86_64", bytes: 27_773_237,
            sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d" },
    Wheel { flavour: Flavour::Cpu, os: "linux", arch: "aarch64", platform: "manylinux_2_28_aarch64", bytes: 23_195_070,
            sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c" },
    Wheel { flavour: Flavour::Cpu, os: "macos", arch: "aarch64", platform: "macosx_14_0_arm64", bytes: 22_506_162,
            sha256: "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c" },
    Wheel { flavour: Flavour::Cpu, os: "windows", arch: "x86_64", platform: "win_amd64", bytes: 16_695_880,
            sha256: "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72" },
    Wheel { flavour: Flavour::Cpu, os: "windows", arch: "aarch64", platform: "win_arm64", bytes: 16_027_290,
            sha256: "23361cdf98afac352d10aa7d9e0a10ceaeb02d38430fb693c6eff370196db62d" },
    Wheel { flavour: Flavour::Cuda, os: "linux", arch: "x86_64", platform: "manylinux_2_28_x86_64", bytes: 255_560_985,
            sha256: "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6" },
    Wheel { flavour: Flavour::Cuda, os: "linux", arch: "aarch64", platform: "manylinux_2_34_aarch64", bytes: 212_349_085,
            sha256: "dc878916611b8a816000ffedacc5f5988f77bb93bf9655ad20144ee3acb08e55" },
    Wheel { flavour: Flavour::Cuda, os: "windows", arch: "x86_64", platform: "win_amd64", bytes: 168_096_711,
            sha256: "fd98341ba71c093153f0dcfc53eb69d57f706866fb45e94e5b0cde5d97a50dbf" },
];

impl Wheel {
    /// The one for this machine.
    pub(super) fn pinned(flavour: Flavour) -> Result<&'static Self, LocateError> {
        WHEELS
            .iter()
            .find(|wheel| (wheel.flavour, wheel.os, wheel.arch) == (flavour, OS, ARCH))
            .filter(|_| !cfg!(target_env = "musl"))
            .ok_or(LocateError::NoWheel { flavour, os: OS, arch: ARCH })
    }

    fn package(&self) -> &'static str {
        match self.flavour {
            Flavour::Cpu => "onnxruntime",
            Flavour::Cuda => "onnxruntime-gpu",
        }
    }

    /// What a requirements file asks for.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.package(), pinned_version(self.flavour))
    }

    pub(super) fn file_name(&self) -> String {
        let version = pinned_version(self.flavour);
        format!("{}-{version}-{WHEEL_ABI}-{WHEEL_ABI}-{}.whl", self.package().replace('-', "_"), self.platform)
    }
}

/// The version that [`install`](super::install()) fetches.
pub fn pinned_version(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Cpu => PINNED_VERSION,
        Flavour::Cuda => PINNED_CUDA_VERSION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_table_is_well_formed() {
        let mut machines = HashSet::new();
        let mut sums = HashSet::new();
        for wheel in WHEELS {
            assert!(machines.insert((wheel.flavour, wheel.os, wheel.arch)), "{wheel:?} twice");
            assert!(sums.insert(wheel.sha256), "{wheel:?} has the sum of another");
            assert_eq!(wheel.sha256.len(), 64);
            assert!(wheel.sha256.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
            assert!(wheel.bytes > 10_000_000);
            let words = match (wheel.os, wheel.arch) {
                ("linux", arch) => ["manylinux_", arch],
                ("macos", "aarch64") => ["macosx_", "arm64"],
                ("windows", "x86_64") => ["win_", "amd64"],
                ("windows", "aarch64") => ["win_", "arm64"],
                _ => panic!("{wheel:?} is for no known machine"),
            };
            assert!(wheel.platform.starts_with(words[0]) && wheel.platform.ends_with(words[1]), "{wheel:?}");
        }
        let gpu = Wheel { flavour: Flavour::Cuda, ..WHEELS[0] };
        assert_eq!(gpu.requirement(), "onnxruntime-gpu==1.31.1");
        assert_eq!(gpu.file_name(), "onnxruntime_gpu-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl");
    }
}
