//! `ImageService`, call by call.

use std::time::SystemTime;

use tonic::{Request, Response, Status};

use super::{Shared, answer, request, status};
use crate::proto;
use crate::proto::image_service_server::ImageService;

fn name(spec: Option<proto::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Status::invalid_argument("the image is missing")) } else { Ok(name) }
}

#[tonic::async_trait]
impl ImageService for Shared {
    async fn list_images(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match wanted.filter(|wanted| !wanted.is_empty()) {
            Some(wanted) => self.runtime.image_status(&wanted).await.map_err(status)?.into_iter().collect(),
            None => self.runtime.list_images().await.map_err(status)?,
        };
        Ok(Response::new(proto::ListImagesResponse { images: images.into_iter().map(answer::image).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<proto::ImageStatusRequest>,
    ) -> Result<Response<proto::ImageStatusResponse>, Status> {
        let asked = request.into_inner();
        let image = self.runtime.image_status(&name(asked.image)?).await.map_err(status)?;
        let told = asked.verbose.then_some(image.as_ref()).flatten();
        let info = told.map(|image| answer::info(&serde_json::json!({ "image": image }))).unwrap_or_default();
        Ok(Response::new(proto::ImageStatusResponse { image: image.map(answer::image), info }))
    }

    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<proto::PullImageResponse>, Status> {
        let request = request.into_inner();
        let auth = request.auth.map(request::auth).transpose().map_err(status)?;
        let image_ref = self.runtime.pull_image(&name(request.image)?, auth).await.map_err(status)?;
        Ok(Response::new(proto::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, Status> {
        // The image itself goes, whatever else it is called.
        if let Some(image) = self.runtime.image_status(&name(request.into_inner().image)?).await.map_err(status)? {
            self.runtime.remove_image(&image.id).await.map_err(status)?;
        }
        Ok(Response::new(proto::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<proto::ImageFsInfoRequest>,
    ) -> Result<Response<proto::ImageFsInfoResponse>, Status> {
        let info = self.runtime.image_fs_info().await.map_err(status)?;
        let usage = answer::image_file_system(&info, answer::nanos(Some(SystemTime::now())));
        Ok(Response::new(proto::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
