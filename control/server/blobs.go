package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	"gocloud.dev/blob/s3blob"     // s3://
	"gocloud.dev/gcerrors"
)

// fileDefaults are how a folder is used where its URL says nothing else.
// Temporary files lie beside the whole ones, so that a rename is atomic, and
// possible at all: the folder may be on another disk than /tmp.
var fileDefaults = map[string]string{"metadata": "skip", "no_tmp_dir": "true", "dir_file_mode": "0700"}

// s3Defaults are for stores other than Amazon's, those with an endpoint: they
// ask for a region, and take any; a bucket's own host name needs DNS; not all
// know checksums.
var s3Defaults = map[string]string{
	"region": "us-east-1", "use_path_style": "true", "request_checksum_calculation": "when_required", "response_checksum_validation": "when_required",
}

// blobPatience is how long the start of a server waits for its blob store.
const blobPatience = 20 * time.Second

// openBlobs opens the store of large things, which by default is a folder.
func (c *Config) openBlobs(ctx context.Context) (*blob.Bucket, error) {
	address, err := c.blobAddress()
	if err != nil {
		return nil, err
	}
	shown := address.Scheme + "://" + address.Host + address.Path // without what may be a secret
	b, err := blob.OpenBucket(ctx, address.String())
	if err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", shown, err)
	}
	if err := mayUse(ctx, b, shown); err != nil {
		_ = b.Close() // nothing was written
		return nil, err
	}
	return b, nil
}

func (c *Config) blobAddress() (*url.URL, error) {
	u, err := url.Parse(c.BlobURL)
	if err != nil || c.BlobURL != "" && u.Scheme == "" {
		return nil, errors.New("--blob-url is no address of a blob store; use file:///FOLDER or s3://BUCKET?region=REGION")
	}
	if c.BlobURL == "" {
		dir, err := filepath.Abs(filepath.Join(c.DataDir, "blobs"))
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make blob folder: %w", err)
		}
		u = &url.URL{Scheme: "file", Path: dir}
	}
	query := u.Query()
	var defaults map[string]string
	switch {
	case u.Scheme == "file":
		defaults = fileDefaults
	case u.Scheme == s3blob.Scheme && query.Has("endpoint"):
		defaults = s3Defaults
	}
	for name, value := range defaults {
		if !query.Has(name) {
			query.Set(name, value)
		}
	}
	u.RawQuery = query.Encode()
	return u, nil
}

// roomForBlobs is roomIn for a store that is a folder; nil: it is not.
func (c *Config) roomForBlobs() func(bytes int64) error {
	u, err := c.blobAddress()
	if err != nil || u.Scheme != "file" {
		return nil
	}
	return roomIn(u.Path)
}

// mayUse says what is wrong with a store and will not pass by itself. One that
// does not answer may come back: who writes says so.
func mayUse(ctx context.Context, b *blob.Bucket, shown string) error {
	ctx, cancel := context.WithTimeout(ctx, blobPatience)
	defer cancel()
	there, err := b.IsAccessible(ctx)
	switch {
	case err == nil && !there:
		return fmt.Errorf("blob store %s is not there; make it, or give another --blob-url", shown)
	case err != nil && refuses(err):
		return fmt.Errorf("blob store %s refuses this server; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that may list, read, write and delete there: %w", shown, err)
	}
	return nil
}

// refuses reports whether a store says that this server may not.
func refuses(err error) bool {
	var answer interface{ HTTPStatusCode() int } // of S3, whose codes are many
	if errors.As(err, &answer) && (answer.HTTPStatusCode() == http.StatusForbidden || answer.HTTPStatusCode() == http.StatusUnauthorized) {
		return true
	}
	return gcerrors.Code(err) == gcerrors.PermissionDenied
}
