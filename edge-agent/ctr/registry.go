package ctr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// credentialsError is a failure of Config.Credentials.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "get credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// resolver speaks to registries for one pull, which ends with ctx. Credentials go to
// the image's own registry and to nobody else, plain HTTP to this machine and nobody
// else.
func (r *Runtime) resolver(ctx context.Context, w protocol.Workload, registry string) remotes.Resolver {
	hosts := func(host string) ([]docker.RegistryHost, error) {
		real, err := docker.DefaultHost(host)
		if err != nil {
			return nil, err
		}
		scheme := "https"
		g := newGuard(nil, isLocal(host))
		switch {
		case host == r.cfg.Registry:
			g = newGuard(r.cfg.RegistryCA, true)
		case g.local:
			scheme = "http"
		}
		context.AfterFunc(ctx, g.CloseIdleConnections)
		client, logins := g.client()
		auth := docker.NewDockerAuthorizer(docker.WithAuthClient(logins), docker.WithAuthCreds(func(asked string) (string, string, error) {
			if asked != real || host != registry || !w.PullAuth || r.cfg.Credentials == nil {
				return "", "", nil
			}
			user, password, err := r.cfg.Credentials(ctx, w, registry)
			if err != nil {
				return "", "", &credentialsError{err}
			}
			return user, password, nil
		}))
		return []docker.RegistryHost{{
			Client: client, Authorizer: auth, Host: real, Scheme: scheme, Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
}

// answered reports whether err is the registry's own word, not silence.
func answered(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	var cred *credentialsError
	var insane *reconcile.Fault
	if errors.As(err, &status) {
		return status.StatusCode < 500
	}
	return errors.As(err, &insane) || errors.Is(err, docker.ErrInvalidAuthorization) || unknownImage(err) && !errors.As(err, &cred) || err != nil && diskFull(err)
}

// unknownImage reports whether the registry says that it has no such image. A
// "not found" of a later stage is about containerd's own things.
func unknownImage(err error) bool {
	return errdefs.IsNotFound(err) && strings.Contains(err.Error(), "failed to resolve reference")
}

// pullFault says for a person why an image did not come.
func (r *Runtime) pullFault(w protocol.Workload, host string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	var cred *credentialsError
	var lookup *net.OpError
	var link *url.Error
	var trust *tls.CertificateVerificationError
	var insane *reconcile.Fault
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	switch {
	case errors.As(err, &insane), diskFull(err), errdefs.IsUnavailable(err):
		return r.wrap("pull image", err)
	case errors.As(err, &cred):
		return reconcile.Faultf(err, "the control plane gave no login for registry %s; it is asked again (%v)", host, cred.err)
	case errors.Is(err, docker.ErrInvalidAuthorization), code == http.StatusUnauthorized, code == http.StatusForbidden:
		return reconcile.Faultf(err, "no right to pull image %s; check its name, and give the workspace a login for registry %s", w.Image, host)
	case strings.Contains(err.Error(), "no match for platform"):
		return reconcile.Finalf(err, "image %s is not made for this kind of machine; build it for the host's platform or choose another", w.Image)
	case code == http.StatusNotFound, unknownImage(err):
		return reconcile.Faultf(err, "image %s is unknown to registry %s; check its name and tag, or push it", w.Image, host)
	case code == http.StatusTooManyRequests:
		return reconcile.Faultf(err, "registry %s refuses more pulls for now; wait, or give the workspace a login for it", host)
	case code >= 500:
		return reconcile.Faultf(err, "registry %s has a problem of its own (%s); it is tried again", host, status.Status)
	case errors.As(err, &trust):
		return reconcile.Faultf(err, "the certificate of registry %s is not trusted by this host; add its CA to the host or fix the certificate", host)
	case errors.Is(err, errStalled):
		return reconcile.Faultf(err, "the pull of image %s stood still; it goes on where it stopped", w.Image)
	case errors.As(err, &lookup), errors.As(err, &link):
		return reconcile.Faultf(err, "registry %s cannot be reached from this host; check its name, the host's network and proxy", host)
	}
	return fmt.Errorf("pull image %s: %w", w.Image, err)
}
