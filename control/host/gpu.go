package host

import (
	"context"
	"fmt"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// MaintainGPU takes a GPU, given by UUID or index, out of placement, or lets it in
// again. Who has it keeps it.
func (s *Service) MaintainGPU(ctx context.Context, c auth.Caller, nameOrID, gpu string, maintenance bool) (Host, error) {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return Host{}, err
	}
	var id string
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) (err error) {
		if id, _, err = lockState(ctx, tx, nameOrID); err != nil {
			return noHost(err, nameOrID)
		}
		uuid, changed, err := setMaintenance(ctx, tx, id, gpu, maintenance)
		switch {
		case pg.IsNone(err):
			return errs.Ef(errs.NotFound, "Host %.80s has no GPU %.80s; see remotegpu host show %.80s.", nameOrID, gpu, nameOrID)
		case err != nil:
			return fmt.Errorf("maintain GPU: %w", err)
		case !changed:
			return nil
		}
		what := "is in maintenance: nothing new gets it"
		if !maintenance {
			what = "may be given again"
		}
		if err := ownEvent(ctx, tx, id, protocol.SeverityNormal, "GPUMaintenance", fmt.Sprintf("GPU %s %s (%s).", uuid, what, c.Name)); err != nil {
			return err
		}
		if err := audit.Record(ctx, tx, c, auth.HostManage, id, "", map[string]any{"gpu": uuid, "maintenance": maintenance}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Changed, id)
	})
	if err != nil {
		return Host{}, err
	}
	return s.Find(ctx, c, id)
}

// setMaintenance reports which GPU it is and whether it was otherwise before.
func setMaintenance(ctx context.Context, tx pg.Tx, host, gpu string, maintenance bool) (uuid string, changed bool, err error) {
	err = tx.QueryRow(ctx, `update gpus g set maintenance = $3 from gpus old
		where g.host_id = $1 and (g.uuid = $2 or g.index::text = $2 and g.present) and old.uuid = g.uuid
		returning g.uuid, old.maintenance <> g.maintenance`, host, gpu, maintenance).Scan(&uuid, &changed)
	return uuid, changed, err
}
