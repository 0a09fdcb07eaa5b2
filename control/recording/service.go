package recording

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Config is what the module needs from others.
type Config struct {
	Bucket  *blob.Bucket
	Resolve func(ctx context.Context, workspace string) (id string, err error) // name or id
	Room    func(bytes int64) error                                            // an error: so much more may not be stored; nil: there is always room
}

// Service does everything with recordings.
type Service struct {
	pool *pg.Pool
	cfg  Config
	log  *slog.Logger
}

// New returns the service.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service { return &Service{pool, cfg, log} }

// PolicyOf returns what a workspace wants; its members may know.
func (s *Service) PolicyOf(ctx context.Context, c auth.Caller, workspace string) (Policy, error) {
	id, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return Policy{}, err
	}
	if err := c.Require(auth.WorkspaceRead, id); err != nil {
		return Policy{}, err
	}
	return policy(ctx, s.pool, id)
}

// Records reports whether a session in a workspace is recorded, for those who
// choose between ways of access.
func (s *Service) Records(ctx context.Context, workspaceID string, terminal bool) (bool, error) {
	p, err := policy(ctx, s.pool, workspaceID)
	return p.Wants(terminal), err
}

// SetPolicy changes what a workspace wants, for sessions that begin from now
// on.
func (s *Service) SetPolicy(ctx context.Context, c auth.Caller, workspace string, p Policy) error {
	id, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return err
	}
	if err := c.Require(auth.RecordingManage, id); err != nil {
		return err
	}
	if err := validPolicy(p); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := setPolicy(ctx, tx, id, p); err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.RecordingManage, id, id, p)
	})
}

// List returns recordings of a workspace, newest first; environment, a name or
// id, narrows it.
func (s *Service) List(ctx context.Context, c auth.Caller, workspace, environment string) ([]Recording, error) {
	id, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return nil, err
	}
	if err := c.Require(mayRead, id); err != nil {
		return nil, err
	}
	return list(ctx, s.pool, id, environment)
}

// Open returns a recording and its asciicast file, as far as it has come. That
// somebody looked is in the audit log.
func (s *Service) Open(ctx context.Context, c auth.Caller, workspace, id string) (Recording, io.ReadCloser, error) {
	ws, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return Recording{}, nil, err
	}
	if err := c.Require(mayRead, ws); err != nil {
		return Recording{}, nil, err
	}
	rec, err := find(ctx, s.pool, ws, id)
	if pg.IsNone(err) {
		return rec, nil, errs.E(errs.NotFound, "There is no such recording in this workspace: see remotegpu recording ls")
	} else if err != nil {
		return rec, nil, err
	}
	if err := audit.Record(ctx, s.pool, c, mayRead, rec.ID, ws, map[string]any{"environment": rec.Environment, "of": rec.User}); err != nil {
		return rec, nil, err
	}
	file, err := s.reader(ctx, rec.ID)
	return rec, file, err
}

// reader reads the joined file, or the parts of one that is not joined yet.
func (s *Service) reader(ctx context.Context, id string) (io.ReadCloser, error) {
	r, err := s.cfg.Bucket.NewReader(ctx, castKey(id), nil)
	if err == nil {
		return r, nil
	}
	if gcerrors.Code(err) != gcerrors.NotFound {
		return nil, fmt.Errorf("open recording: %w", err)
	}
	return s.parts(ctx, id), nil
}

// parts reads the parts of a recording one after the other.
func (s *Service) parts(ctx context.Context, id string) io.ReadCloser {
	return &partsReader{ctx: ctx, bucket: s.cfg.Bucket, files: s.cfg.Bucket.List(&blob.ListOptions{Prefix: partsOf(id)})}
}

// partsReader opens each part when the one before has been read.
type partsReader struct {
	ctx    context.Context
	bucket *blob.Bucket
	files  *blob.ListIterator
	now    *blob.Reader // nil: none is open
}

func (r *partsReader) Read(p []byte) (int, error) {
	for {
		if r.now == nil {
			f, err := r.files.Next(r.ctx)
			if err == nil {
				r.now, err = r.bucket.NewReader(r.ctx, f.Key, nil)
			}
			if err != nil {
				return 0, err // io.EOF after the last
			}
		}
		n, err := r.now.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if err := r.Close(); n > 0 || err != nil {
			return n, err
		}
	}
}

func (r *partsReader) Close() error {
	if r.now == nil {
		return nil
	}
	now := r.now
	r.now = nil
	return now.Close()
}

func (s *Service) write(ctx context.Context, key string, b []byte) error {
	if err := s.room(int64(len(b))); err != nil {
		return err
	}
	return s.cfg.Bucket.WriteAll(ctx, key, b, &blob.WriterOptions{ContentType: "application/x-asciicast"})
}

func (s *Service) room(bytes int64) error {
	if s.cfg.Room == nil {
		return nil
	}
	return s.cfg.Room(bytes)
}

// finish joins the parts, and what the journal has beyond them, and notes the
// end.
func (s *Service) finish(ctx context.Context, id string, cut bool) error {
	if _, _, err := s.recover(ctx, id); err != nil {
		return err
	}
	if err := s.join(ctx, id); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := end(ctx, tx, id, cut); err != nil {
			return err
		}
		return dropRows(ctx, tx, id, math.MaxInt64)
	})
}

func (s *Service) join(ctx context.Context, id string) error {
	done, err := s.cfg.Bucket.Exists(ctx, castKey(id))
	if err != nil {
		return fmt.Errorf("look for recording: %w", err)
	}
	if !done {
		bytes := int64(0)
		err := s.eachPart(ctx, id, func(f *blob.ListObject) error {
			bytes += f.Size
			return nil
		})
		if err == nil {
			err = s.room(bytes)
		}
		if err != nil {
			return fmt.Errorf("join recording: %w", err)
		}
		from := s.parts(ctx, id)
		err = s.cfg.Bucket.Upload(ctx, castKey(id), from, &blob.WriterOptions{ContentType: "application/x-asciicast"})
		from.Close()
		if err != nil {
			return fmt.Errorf("join recording: %w", err)
		}
	}
	return s.removeParts(ctx, id)
}

func (s *Service) removeParts(ctx context.Context, id string) error {
	return s.eachPart(ctx, id, func(f *blob.ListObject) error { return s.remove(ctx, f.Key) })
}

func (s *Service) eachPart(ctx context.Context, id string, do func(f *blob.ListObject) error) error {
	files := s.cfg.Bucket.List(&blob.ListOptions{Prefix: partsOf(id)})
	for {
		f, err := files.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list parts of recording: %w", err)
		}
		if err := do(f); err != nil {
			return err
		}
	}
}

func (s *Service) remove(ctx context.Context, key string) error {
	if err := s.cfg.Bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}
