//! How messages that hold secrets or tokens are printed: by their volume alone.

use std::fmt;

use crate::csi;

macro_rules! without_secrets {
    ($($message:ident: $field:ident,)*) => {
        $(impl fmt::Debug for csi::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).field(stringify!($field), &self.$field).finish_non_exhaustive()
            }
        })*
    };
}

without_secrets! {
    CreateVolumeRequest: name,
    DeleteVolumeRequest: volume_id,
    ControllerPublishVolumeRequest: volume_id,
    ControllerUnpublishVolumeRequest: volume_id,
    ControllerExpandVolumeRequest: volume_id,
    ValidateVolumeCapabilitiesRequest: volume_id,
    NodeStageVolumeRequest: volume_id,
    NodePublishVolumeRequest: volume_id,
    NodeExpandVolumeRequest: volume_id,
}
